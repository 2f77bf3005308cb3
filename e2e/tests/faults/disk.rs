//! A file system of its own for each server, that can be filled and can fail.
//!
//! It is ext4 on a loop device, whose file lies, with holes, in a tmpfs: where the tmpfs has no room for a block, the device
//! answers its write with an error, as a disk does that dies. That comes to light at the next sync. A file system can also be
//! shut down, after which every operation on it fails at once.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use e2e::{
    host::sh,
    wait::{seconds, wait},
};

/// More than a server writes in the longest run; only what was written takes memory.
const SIZE: &str = "512m";

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// No block can be written any more: what is written is found to be lost when it is synced.
    Blocks,
    /// The file system is gone, with EIO for everything.
    Whole,
}

// FS_IOC_SHUTDOWN of the kernel's linux/fs.h: the number is one that says that it reads, though the kernel only takes.
nix::ioctl_read!(shut_down, b'X', 125, u32);
/// Without writing the journal: nothing that is not on the disk gets there.
const WITHOUT_LOG: u32 = 2;

pub struct Disk {
    shelf: PathBuf,
    mount: PathBuf,
}

impl Disk {
    pub fn new(dir: &Path, name: &str) -> Result<Disk> {
        let disk = Disk { shelf: dir.join(format!("{name}-shelf")), mount: dir.join(name) };
        fs::create_dir_all(&disk.shelf)?;
        fs::create_dir_all(&disk.mount)?;
        disk.put_in()?;
        Ok(disk)
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// A new, empty disk.
    fn put_in(&self) -> Result<()> {
        let (shelf, mount) = (self.shelf.display(), self.mount.display());
        sh(&format!(
            "set -e; mount -t tmpfs -o size=600m,mode=700 none {shelf}; truncate -s {SIZE} {shelf}/disk
             mkfs.ext4 -q -m 0 -F {shelf}/disk; mount -o loop {shelf}/disk {mount}"
        ))
        .with_context(|| format!("make a file system on {mount}"))
    }

    /// Throws the disk away and puts an empty one in its place. Nothing may use it any more.
    pub fn replace(&self) -> Result<()> {
        take_out(&self.mount)?;
        take_out(&self.shelf)?;
        self.put_in()
    }

    /// Leaves no byte free.
    pub fn fill(&self) -> Result<()> {
        // The second file takes what a whole allocation has left over; its end is the error that is wanted.
        let mount = self.mount.display();
        sh(&format!(
            "fallocate -l $(stat -f -c '%a * %S' {mount} | xargs expr) {mount}/ballast || true
             cat /dev/zero >{mount}/rest 2>/dev/null || true"
        ))
    }

    pub fn make_room(&self) -> Result<()> {
        sh(&format!("rm -f {0}/ballast {0}/rest", self.mount.display()))
    }

    pub fn fail(&self, how: Failing) -> Result<()> {
        match how {
            Failing::Blocks => self.fail_blocks(),
            Failing::Whole => self.fail_whole(),
        }
    }

    fn fail_whole(&self) -> Result<()> {
        let root = fs::File::open(&self.mount)?;
        let mut flags = WITHOUT_LOG;
        // SAFETY: the descriptor is open, and `flags` is a valid number for as long as the call takes.
        unsafe { shut_down(root.as_raw_fd(), &raw mut flags) }.context("shut the file system down").map(drop)
    }

    /// From now on every write that reaches the device is an error, wherever it goes.
    fn fail_blocks(&self) -> Result<()> {
        let shelf = self.shelf.display();
        // A tmpfs has at least one page. What the server writes in between is in the way of what follows.
        let line = format!(
            "fallocate -p -o 0 -l {SIZE} {shelf}/disk && mount -o remount,size=4k {shelf} &&
             head -c 4096 /dev/zero >{shelf}/page"
        );
        wait("failing disk", seconds(5), || sh(&line).map(Some))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = take_out(&self.mount);
        let _ = take_out(&self.shelf);
    }
}

/// Whoever ended a moment ago may still hold a file.
fn take_out(mount: &Path) -> Result<()> {
    let mount = mount.display();
    wait(&format!("end of the use of {mount}"), seconds(5), || sh(&format!("umount {mount}")).map(Some))
        .or_else(|_| sh(&format!("umount -l {mount}")))
}

/// Takes away what a run left below a directory that could not clean up after itself.
pub fn clean(dir: &Path) -> Result<()> {
    sh(&format!(
        "awk -v d={0}/ 'index($2, d) == 1 {{print $2}}' /proc/mounts | sort -r | xargs -r -n1 umount -l; rm -rf {0}",
        dir.display()
    ))
}

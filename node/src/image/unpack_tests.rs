//! A corpus of layers, honest and hostile.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

/// A tar written by hand, because libraries refuse to write what attackers send.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn add(mut self, path: &str, kind: u8, link: &str, data: &[u8]) -> Tar {
        self.member(path, kind, link, data, 0o644, (0, 0));
        self
    }

    fn file(self, path: &str, data: &str) -> Tar {
        self.add(path, b'0', "", data.as_bytes())
    }

    fn dir(self, path: &str) -> Tar {
        self.add(path, b'5', "", b"")
    }

    fn symlink(self, path: &str, to: &str) -> Tar {
        self.add(path, b'2', to, b"")
    }

    fn member(&mut self, path: &str, kind: u8, link: &str, data: &[u8], mode: u32, device: (u32, u32)) {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(device.0).unwrap();
        header.set_device_minor(device.1).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.add("pax", b'x', "", &body)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// `outside/` holds a file nobody may touch; layers go to `outside/../in/`.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Place { dir }
    }

    fn inside(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    fn unpack(&self, bytes: &[u8]) -> Result<String, String> {
        unpack(bytes, bytes.len() as u64, &self.inside())
    }

    fn assert_untouched(&self, case: &str) {
        let outside = self.dir.path().join("outside");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["secret"], "{case}");
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret", "{case}");
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().permissions().mode() & 0o7777, 0o644, "{case}");
        let top: Vec<_> = fs::read_dir(self.dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(top.len(), 2, "{case}: {top:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_honest_layer_is_unpacked_as_it_is() {
    let place = Place::new();
    let mut layer = Tar::default()
        .dir("etc/")
        .file("etc/a", "A")
        .symlink("etc/link", "/etc/a")
        .add("etc/hard", b'1', "etc/a", b"")
        .pax(&[
            ("path", b"etc/longer-name"),
            ("SCHILY.xattr.user.note", b"two\nlines"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/"),
        ])
        .file("short", "B");
    layer.member("bin/su", b'0', "", b"", 0o4755, (0, 0));
    layer.member("dev/zero", b'3', "", b"", 0o666, (1, 5));
    let bytes = layer.add("run/pipe", b'6', "", b"").file("./etc/dot", "C").end();
    let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
    assert_eq!(place.unpack(&gzip(&bytes)), Ok(digest));
    let at = |p: &str| place.inside().join(p);
    assert_eq!(fs::read_to_string(at("etc/longer-name")).unwrap(), "B");
    assert_eq!(fs::read_to_string(at("etc/dot")).unwrap(), "C");
    assert_eq!(fs::read_link(at("etc/link")).unwrap(), Path::new("/etc/a"));
    assert_eq!(fs::metadata(at("etc/a")).unwrap().ino(), fs::metadata(at("etc/hard")).unwrap().ino());
    assert_eq!(fs::metadata(at("bin/su")).unwrap().permissions().mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(at("etc")).unwrap().mtime(), 1_000_000);
    let zero = fs::symlink_metadata(at("dev/zero")).unwrap();
    assert!(zero.file_type().is_char_device() && zero.rdev() == makedev(1, 5));
    assert!(fs::symlink_metadata(at("run/pipe")).unwrap().file_type().is_fifo());
    place.assert_untouched("honest");
}

#[test]
fn whiteouts_become_overlayfs_ones() {
    let place = Place::new();
    let layer = Tar::default()
        .file("etc/.wh.gone", "")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "n")
        .file("x/.wh..wh.plnk", "");
    place.unpack(&layer.end()).unwrap();
    let gone = fs::symlink_metadata(place.inside().join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(place.inside().join("var/new").exists());
    assert!(!place.inside().join("x").exists());
    let mut value = [0u8; 4];
    let path = CString::new(place.inside().join("var").as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings are terminated, and the buffer is as long as is said.
    let n = unsafe {
        nix::libc::getxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    assert_eq!((n, value[0]), (1, b'y'));
}

#[test]
fn nothing_is_written_outside() {
    let cases: Vec<(&str, Tar)> = vec![
        ("dot dot", Tar::default().file("../outside/evil", "x")),
        ("dot dot inside", Tar::default().dir("a").file("a/../../outside/evil", "x")),
        ("absolute", Tar::default().file("/outside/evil", "x")),
        ("symlinked parent", Tar::default().symlink("a", "../outside").file("a/evil", "x")),
        ("absolute symlinked parent", Tar::default().symlink("a", "/outside").file("a/evil", "x")),
        ("symlink chain", Tar::default().symlink("a", "b").symlink("b", "../outside").file("a/evil", "x")),
        ("symlink overwritten by itself", Tar::default().symlink("secret", "../outside/secret").file("secret", "x")),
        ("hard link out", Tar::default().add("h", b'1', "../outside/secret", b"").file("h", "x")),
        ("hard link by symlink", Tar::default().symlink("a", "../outside").add("h", b'1', "a/secret", b"")),
        ("mode through a symlink", {
            let mut tar = Tar::default();
            tar.member("s", b'2', "../outside/secret", b"", 0o777, (0, 0));
            tar
        }),
        ("whiteout of a parent", Tar::default().file("a/.wh...", "")),
        ("whiteout through a symlink", Tar::default().symlink("a", "../outside").file("a/.wh.secret", "")),
        ("opaque through a symlink", Tar::default().symlink("a", "../outside").file("a/.wh..wh..opq", "")),
        ("directory over a symlink", Tar::default().symlink("a", "../outside").dir("a").file("a/evil", "x")),
        ("long name", Tar::default().add("././@LongLink", b'L', "", b"../outside/evil\0").file("x", "x")),
        ("long link", Tar::default().add("././@LongLink", b'K', "", b"../outside/secret\0").add("h", b'1', "x", b"")),
        ("pax path", Tar::default().pax(&[("path", b"../outside/evil")]).file("x", "x")),
    ];
    for (case, layer) in cases {
        let place = Place::new();
        let _ = place.unpack(&layer.end());
        place.assert_untouched(case);
    }
}

#[test]
fn what_no_layer_may_say_is_refused() {
    let mut whiteout_device = Tar::default();
    whiteout_device.member("x", b'3', "", b"", 0o644, (0, 0));
    let mut long = Tar::default().0;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    long.extend_from_slice(header.as_bytes());
    for (case, bytes, want) in [
        ("dot dot", Tar::default().file("a/../b", "").end(), ".."),
        ("device 0/0", whiteout_device.end(), "Invalid argument"),
        ("a long name without end", long, "too long"),
        ("sparse", Tar::default().add("s", b'S', "", b"").end(), "sparse"),
        ("unknown", Tar::default().add("s", b'Z', "", b"").end(), "not understood"),
        ("pax length", Tar::default().add("p", b'x', "", b"99 path=x\n").file("x", "").end(), "malformed"),
        ("cut off", Tar::default().file("x", &"y".repeat(2000)).end()[..1500].to_vec(), ""),
        (
            "cut off gzip",
            {
                let g = gzip(&Tar::default().file("x", "y").end());
                g[..g.len() - 12].to_vec()
            },
            "",
        ),
        ("no archive", vec![b'x'; 4096], ""),
    ] {
        let place = Place::new();
        let error = place.unpack(&bytes).expect_err(case);
        assert!(error.contains(want), "{case}: {error}");
        place.assert_untouched(case);
    }
}

#[test]
fn bombs_are_stopped() {
    let place = Place::new();
    let mut tar = Tar::default();
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..4].copy_from_slice(b"zero");
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(64 << 30);
    header.set_cksum();
    tar.0.extend_from_slice(header.as_bytes());
    // 64 GiB of zeros are promised; the source never ends, and nothing is written to the disk for holes' sake.
    let mut endless = Hashed { inner: (&tar.0[..]).chain(io::repeat(0)), hash: Sha256::new(), left: 1 << 20 };
    let mut unpacker = Unpacker { root: Root::open(&place.inside()).unwrap(), dirs: Vec::new(), parent: None };
    let error = unpacker.all(&mut tar::Archive::new(&mut endless)).unwrap_err();
    assert!(error.contains("far more"), "{error}");
}

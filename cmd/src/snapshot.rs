//! `minik8s snapshot`: the cluster as one file, taken from a running server by hand or on its schedule, and a new server
//! made of such a file.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use apiserver::{Snapshots, Taken, create_private_dir, paths, write_private};
use reqwest::Method;
use store::Contents;

use crate::{
    ask::Running,
    flags::{Secret, SnapshotAction},
    seal::{self, Passphrase},
};

const EXTENSION: &str = "snapshot";
/// After a scheduled snapshot failed.
const RETRY: Duration = Duration::from_secs(300);

/// When the server takes snapshots by itself.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub interval: Duration,
    pub keep: usize,
    /// What they are encrypted with, if they are.
    pub passphrase: Option<Passphrase>,
}

pub async fn run(action: SnapshotAction) -> Result<()> {
    match action {
        SnapshotAction::Save { server, secret, file } => {
            ensure!(!file.exists(), "{} exists already: choose another name", file.display());
            let passphrase = passphrase(&secret)?;
            let server = Running::find(server)?;
            let archive = server.ask(Method::GET, paths::SNAPSHOT, "take a snapshot").await?;
            let (contents, bytes) = save(&file, &archive, passphrase.as_ref())?;
            println!("{}: {}", file.display(), describe(contents, bytes));
        }
        SnapshotAction::Ls { data, secret } => {
            let passphrase = passphrase(&secret)?;
            for path in in_dir(&dir(&data.data_dir), EXTENSION)? {
                match inspect(&path, passphrase.as_ref()) {
                    Ok((contents, bytes)) => println!("{}\t{}", path.display(), describe(contents, bytes)),
                    // The schedule has removed it meanwhile.
                    Err(_) if !path.exists() => {}
                    Err(error) if error.is::<NeedsPassphrase>() => println!("{}\tencrypted", path.display()),
                    Err(error) => println!("{}\tdamaged: {error:#}", path.display()),
                }
            }
        }
        SnapshotAction::Restore { data, secret, file } => {
            let contents = restore(&data.data_dir, &file, passphrase(&secret)?.as_ref())?;
            println!("restored {} keys as of revision {}", contents.keys, contents.revision);
            println!(
                "once it is started, other servers of this cluster set their stores aside and take over this one's"
            );
            println!("start it with:  minik8s server --data-dir {}", data.data_dir.display());
        }
    }
    Ok(())
}

fn passphrase(secret: &Secret) -> Result<Option<Passphrase>> {
    secret.passphrase_file.as_deref().map(Passphrase::read).transpose()
}

/// A file that is encrypted, and nobody has said with what.
#[derive(Debug, thiserror::Error)]
#[error("it is encrypted: give --passphrase-file")]
struct NeedsPassphrase;

fn describe(Contents { revision, keys }: Contents, bytes: u64) -> String {
    format!("revision {revision}, {keys} keys, {bytes} bytes")
}

/// Writes an archive and reads it back: what is kept for the worst day must be readable on the first.
fn save(file: &Path, archive: &[u8], passphrase: Option<&Passphrase>) -> Result<(Contents, u64)> {
    let sealed = passphrase.map(|passphrase| seal::seal(passphrase, archive)).transpose()?;
    write_private(file, sealed.as_deref().unwrap_or(archive)).with_context(|| format!("write {}", file.display()))?;
    let inspected = inspect(file, passphrase);
    if inspected.is_err() {
        // It must not stand beside good ones, and be taken for one.
        let _ = fs::remove_file(file);
    }
    inspected.with_context(|| format!("{} could not be read back", file.display()))
}

fn read(file: &Path, passphrase: Option<&Passphrase>) -> Result<(apiserver::Snapshot, u64)> {
    let within = || format!("read {}", file.display());
    let mut archive = fs::read(file).with_context(within)?;
    let bytes = archive.len() as u64;
    if seal::is_sealed(&archive) {
        let passphrase = passphrase.ok_or(NeedsPassphrase).with_context(within)?;
        archive = seal::open(passphrase, &archive).with_context(within)?;
    }
    let snapshot = apiserver::Snapshot::read(&archive).map_err(anyhow::Error::msg);
    Ok((snapshot.with_context(within)?, bytes))
}

fn inspect(file: &Path, passphrase: Option<&Passphrase>) -> Result<(Contents, u64)> {
    let (snapshot, bytes) = read(file, passphrase)?;
    let contents = Contents::of(snapshot.image).map_err(anyhow::Error::msg);
    Ok((contents.with_context(|| format!("the store in {}", file.display()))?, bytes))
}

/// Fills a data directory that has no cluster. The store comes last, so that a restore which was cut off can be repeated.
fn restore(data_dir: &Path, file: &Path, passphrase: Option<&Passphrase>) -> Result<Contents> {
    let (snapshot, _) = read(file, passphrase)?;
    Contents::of(snapshot.image.clone())
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("the store in {}", file.display()))?;
    let store = store::Config::new(data_dir.join("store"));
    let taken = |path: &Path| {
        format!("{} exists: restore into an empty --data-dir, or move what is there aside first", path.display())
    };
    ensure!(!store.dir.exists(), taken(&store.dir));
    create_private_dir(&data_dir.join("tls"))?;
    for (name, content) in &snapshot.files {
        let path = data_dir.join(name);
        match fs::read(&path) {
            Ok(there) => ensure!(there == *content, taken(&path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_private(&path, content).with_context(|| format!("write {}", path.display()))?
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(store::restore(&store, snapshot.image)?)
}

/// Where scheduled snapshots lie.
fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshots")
}

/// The snapshots in a directory, oldest first: their names begin with the revision, as a clock may have been set back.
fn in_dir(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", dir.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Takes snapshots for as long as the server runs. A restart does not begin the interval anew.
pub async fn keep(snapshots: Snapshots, data_dir: PathBuf, schedule: Schedule) {
    let dir = dir(&data_dir);
    let begun = now();
    loop {
        let newest = in_dir(&dir, EXTENSION).ok().and_then(|found| fs::metadata(found.last()?).ok()?.modified().ok());
        tokio::time::sleep(due(newest, begun, now(), schedule.interval)).await;
        let taken = match snapshots.take().await {
            Ok(taken) => {
                let (dir, schedule) = (dir.clone(), schedule.clone());
                let kept = tokio::task::spawn_blocking(move || keep_one(&dir, &taken, &schedule)).await;
                kept.map_err(anyhow::Error::from).flatten()
            }
            Err(what) => Err(anyhow::Error::msg(what)),
        };
        if let Err(error) = taken {
            tracing::error!("no snapshot could be taken, trying again in {} s: {error:#}", RETRY.as_secs());
            tokio::time::sleep(RETRY).await;
        }
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

/// How long from `now` until the next one, when the newest is from `newest`, or there is none and the server began at
/// `begun`. A clock set back must not put it off for longer than the interval.
fn due(newest: Option<SystemTime>, begun: SystemTime, now: SystemTime, interval: Duration) -> Duration {
    let since = now.duration_since(newest.unwrap_or(begun)).unwrap_or_default();
    interval.saturating_sub(since)
}

/// Writes a scheduled snapshot, and removes the oldest ones beyond `keep`.
fn keep_one(dir: &Path, taken: &Taken, schedule: &Schedule) -> Result<()> {
    create_private_dir(dir)?;
    for draft in in_dir(dir, "draft")? {
        // Left behind by a crash.
        fs::remove_file(&draft).with_context(|| format!("remove {}", draft.display()))?;
    }
    let seconds = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    let time = jiff::Timestamp::from_second(seconds)?.strftime("%Y%m%dT%H%M%SZ");
    let file = dir.join(format!("{:020}-{time}.{EXTENSION}", taken.revision));
    save(&file, &taken.archive, schedule.passphrase.as_ref())?;
    let found = in_dir(dir, EXTENSION)?;
    for old in &found[..found.len().saturating_sub(schedule.keep)] {
        fs::remove_file(old).with_context(|| format!("remove {}", old.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_next_one_is_due() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let hour = Duration::from_secs(3600);
        for (newest, begun, now, wait) in [
            (None, 1000, 1000, 3600),
            (None, 1000, 1600, 3000),
            (Some(400), 1000, 1000, 3000),
            (Some(400), 1000, 9000, 0),
            (Some(9000), 1000, 1000, 3600),
        ] {
            let due = due(newest.map(at), at(begun), at(now), hour);
            assert_eq!(due.as_secs(), wait, "{newest:?} {begun} {now}");
        }
    }

    /// The clock goes back, a crash leaves a draft: the newest are kept, by what they hold.
    #[test]
    fn the_newest_are_kept() {
        let data = tempfile::tempdir().expect("a directory");
        let dir = data.path().join("snapshots");
        create_private_dir(&dir).expect("made");
        let place = |name: &str| dir.join(name);
        let names = [format!("{:020}-20300101T000000Z.snapshot", 7), format!("{:020}-19700101T000000Z.snapshot", 8)];
        for name in &names {
            fs::write(place(name), "").expect("written");
        }
        fs::write(place("x.snapshot.draft"), "").expect("written");
        // What cannot be read back is not kept, and takes no good one's place.
        let schedule = Schedule { interval: Duration::from_secs(1), keep: 2, passphrase: None };
        let taken = Taken { revision: 9, archive: b"nothing".to_vec() };
        let error = keep_one(&dir, &taken, &schedule).expect_err("unreadable");
        assert!(format!("{error:#}").contains("could not be read back"), "{error:#}");
        let left = || -> Vec<String> {
            let mut names: Vec<_> =
                fs::read_dir(&dir).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
            names.sort();
            names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
        };
        assert_eq!(left(), names);
        let newest: Vec<_> = in_dir(&dir, EXTENSION).expect("listed").pop().into_iter().collect();
        assert_eq!(newest, [place(&names[1])]);
    }
}

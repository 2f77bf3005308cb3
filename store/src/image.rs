//! An image of the state as bytes: the form of a snapshot file, and of the snapshot one member sends another.
//!
//! `[magic][base][keys][crc u32]`. A snapshot file is what the log before it is cut for: it is written under
//! another name, synced and renamed, so that it is there whole or not at all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{BufMut, Bytes};

use crate::{
    Error, KeyValue, LeaseId,
    command::{DecodeError, Reader, put_bytes, put_varint},
    disk::{Disk, Mode},
    log::failed,
    map::Map,
    mvcc::{Base, Image, Members, Position},
};

const MAGIC: &[u8; 8] = b"m8sSnap\x01";

/// Bytes given to the disk at a time: the image is never in memory twice.
const CHUNK: usize = 1 << 20;

/// The image's bytes, handed to `sink` in chunks.
pub fn write_chunks<E>(image: &Image, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut crc = crc32fast::Hasher::new();
    let mut chunk = Vec::with_capacity(CHUNK / 16);
    chunk.extend_from_slice(MAGIC);
    put_base(&mut chunk, &image.base);
    put_varint(&mut chunk, image.map.len() as u64);
    for kv in image.map.values() {
        put_key_value(&mut chunk, kv);
        if chunk.len() >= CHUNK {
            crc.update(&chunk);
            sink(&chunk)?;
            chunk.clear();
        }
    }
    crc.update(&chunk);
    chunk.extend_from_slice(&crc.finalize().to_le_bytes());
    sink(&chunk)
}

pub fn encode(image: &Image) -> Vec<u8> {
    let mut out = Vec::new();
    let written: Result<(), std::convert::Infallible> = write_chunks(image, |chunk| {
        out.extend_from_slice(chunk);
        Ok(())
    });
    let Ok(()) = written;
    out
}

/// Whether the bytes are all of an image, as they were written.
pub fn is_whole(data: &[u8]) -> bool {
    let split = data.len().checked_sub(4);
    split.is_some_and(|split| crc32fast::hash(&data[..split]).to_le_bytes() == data[split..])
}

pub fn decode(data: Bytes) -> Result<Image, DecodeError> {
    if !is_whole(&data) {
        return Err(DecodeError("checksum differs"));
    }
    let split = data.len() - 4;
    let mut input = Reader { data: data.slice(..split) };
    if input.data.len() < MAGIC.len() || input.data.split_to(MAGIC.len()) != MAGIC[..] {
        return Err(DecodeError("unknown format"));
    }
    let base = read_base(&mut input)?;
    let mut map = Map::default();
    for _ in 0..input.varint()? {
        let kv = read_key_value(&mut input)?;
        map.insert(Arc::new(kv));
    }
    if input.is_empty() { Ok(Image { base, map }) } else { Err(DecodeError("bytes after the image")) }
}

pub fn put_base(out: &mut impl BufMut, base: &Base) {
    put_varint(out, base.position.index);
    put_varint(out, base.position.term);
    put_varint(out, base.revision);
    let Members { voters, learners, voters_outgoing, learners_next, auto_leave } = &base.members;
    for list in [voters, learners, voters_outgoing, learners_next] {
        put_varint(out, list.len() as u64);
        list.iter().for_each(|&id| put_varint(out, id));
    }
    out.put_u8(u8::from(*auto_leave));
    put_varint(out, base.leases.len() as u64);
    for (id, ttl_ms) in &base.leases {
        put_varint(out, id.0);
        put_varint(out, *ttl_ms);
    }
}

pub fn read_base(input: &mut Reader) -> Result<Base, DecodeError> {
    let position = Position { index: input.varint()?, term: input.varint()? };
    let revision = input.varint()?;
    let list = |input: &mut Reader| (0..input.varint()?).map(|_| input.varint()).collect::<Result<Vec<u64>, _>>();
    let members = Members {
        voters: list(input)?,
        learners: list(input)?,
        voters_outgoing: list(input)?,
        learners_next: list(input)?,
        auto_leave: input.u8()? != 0,
    };
    let leases =
        (0..input.varint()?).map(|_| Ok((LeaseId(input.varint()?), input.varint()?))).collect::<Result<_, _>>()?;
    Ok(Base { position, revision, members, leases })
}

pub fn put_key_value(out: &mut impl BufMut, kv: &KeyValue) {
    put_bytes(out, &kv.key);
    put_bytes(out, &kv.value);
    for number in [kv.create_revision, kv.mod_revision, kv.version, kv.lease.map_or(0, |lease| lease.0)] {
        put_varint(out, number);
    }
}

pub fn read_key_value(input: &mut Reader) -> Result<KeyValue, DecodeError> {
    // Copied out, so that one key does not keep the whole image in memory; key and value in one piece.
    let (key, value) = (input.bytes()?, input.bytes()?);
    let mut both = Vec::with_capacity(key.len() + value.len());
    both.extend_from_slice(&key);
    both.extend_from_slice(&value);
    let length = key.len();
    let both = Bytes::from(both);
    Ok(KeyValue {
        key: both.slice(..length),
        value: both.slice(length..),
        create_revision: input.varint()?,
        mod_revision: input.varint()?,
        version: input.varint()?,
        lease: Some(input.varint()?).filter(|&id| id != 0).map(LeaseId),
    })
}

fn path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016x}.snapshot"))
}

/// Writes the snapshot file of an image and then removes older ones; answers its size.
pub fn save(disk: &dyn Disk, dir: &Path, image: &Image) -> Result<u64, Error> {
    disk.create_dir_all(dir).map_err(failed("create", dir))?;
    let target = path(dir, image.base.position.index);
    let draft = target.with_extension("draft");
    let mut file = disk.open(&draft, Mode::New).map_err(failed("create", &draft))?;
    let mut offset = 0;
    write_chunks(image, |chunk| {
        file.write_at(offset, chunk)?;
        offset += chunk.len() as u64;
        Ok(())
    })
    .map_err(failed("write", &draft))?;
    file.sync().map_err(failed("sync", &draft))?;
    disk.rename(&draft, &target).map_err(failed("rename", &draft))?;
    disk.sync_dir(dir).map_err(failed("sync", dir))?;
    for (index, path) in list(disk, dir, ".snapshot")? {
        if index < image.base.position.index {
            disk.remove(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(offset)
}

/// The newest snapshot; nothing where there never was one. Removes what crashes have left behind: later on a draft is one
/// that somebody is writing.
pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Image>, Error> {
    for (_, path) in list(disk, dir, ".draft")? {
        disk.remove(&path).map_err(failed("remove", &path))?;
    }
    let Some((_, path)) = list(disk, dir, ".snapshot")?.pop() else { return Ok(None) };
    let data = disk.read(&path).map_err(failed("read", &path))?;
    match decode(data.into()) {
        Ok(image) => Ok(Some(image)),
        Err(error) => Err(Error::Corrupt { path, offset: 0, reason: error.0.to_owned() }),
    }
}

/// The files of one kind with their log indexes, oldest first.
fn list(disk: &dyn Disk, dir: &Path, kind: &str) -> Result<Vec<(u64, PathBuf)>, Error> {
    let names = match disk.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", dir)(error)),
    };
    let parse = |name: &String| u64::from_str_radix(name.strip_suffix(kind)?, 16).ok();
    let mut found: Vec<_> = names.iter().filter_map(|name| Some((parse(name)?, dir.join(name)))).collect();
    found.sort();
    Ok(found)
}

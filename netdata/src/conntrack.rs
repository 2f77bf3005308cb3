//! Forgets tracked UDP flows to endpoints that are gone: a flow that goes on keeps its translation, and its packets
//! would be sent where nobody listens for as long as the client keeps sending.
//!
//! The kernel's table is read by netlink (linux/netfilter/nfnetlink_conntrack.h) and flows are deleted one by one.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};

use crate::{
    error::{Error, Result},
    frontend::Face,
    ruleset::Stale,
};

const HEADER: usize = 16;
/// The header of netfilter's messages after netlink's own.
const FAMILY_HEADER: usize = 4;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const DONE: u16 = 3;
const ERROR: u16 = 2;

const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE: u16 = 2;
const PROTOCOL_DESTINATION: u16 = 3;
/// The bits of an attribute's type that are flags.
const TYPE_MASK: u16 = 0x3fff;

const UDP: u8 = 17;

/// Room for one message of a dump; the kernel fills at most this much.
const ROOM: usize = 64 * 1024;

/// The kernel answers within microseconds; a socket that stays silent is given up.
const SILENCE: nix::sys::time::TimeVal = nix::sys::time::TimeVal::new(5, 0);

/// Deletes the flows that lead to any of these. It blocks, for as long as reading the whole table takes.
pub fn forget(stale: &[Stale]) -> Result<usize> {
    let failed = |e: nix::Error| Error::system("read", "the connection tracking table")(io::Error::from(e));
    let open = || -> nix::Result<OwnedFd> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &SILENCE)?;
        Ok(socket)
    };
    let socket = open().map_err(failed)?;
    send(&socket, GET, REQUEST | DUMP, &[]).map_err(failed)?;
    let gone = read_dump(&socket, stale).map_err(failed)?;
    for tuple in &gone {
        // A flow that ended by itself meanwhile is as well gone; the kernel's answer is of no interest.
        send(&socket, DELETE, REQUEST, tuple).map_err(failed)?;
    }
    Ok(gone.len())
}

fn send(socket: &OwnedFd, kind: u16, flags: u16, attributes: &[u8]) -> nix::Result<()> {
    let length = HEADER + FAMILY_HEADER + attributes.len();
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([nix::libc::AF_INET.to_ne_bytes()[0], 0, 0, 0]);
    message.extend(attributes);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

fn read_dump(socket: &OwnedFd, stale: &[Stale]) -> nix::Result<Vec<Vec<u8>>> {
    let mut gone = Vec::new();
    let mut buffer = vec![0; ROOM];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = split_message(rest) {
            rest = after;
            match kind {
                DONE | ERROR => return Ok(gone),
                _ => gone.extend(leads_to(body, stale)),
            }
        }
    }
}

fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attribute that names a flow, if the flow is one of the stale.
fn leads_to(body: &[u8], stale: &[Stale]) -> Option<Vec<u8>> {
    let attributes = body.get(FAMILY_HEADER..)?;
    let original = flow(attribute(attributes, TUPLE_ORIGINAL)?)?;
    let reply = flow(attribute(attributes, TUPLE_REPLY)?)?;
    let hit = |stale: &Stale| {
        let called = match stale.frontend.face {
            Face::Vip | Face::VipOutside => *original.destination.ip() == stale.frontend.ip,
            Face::Node | Face::NodeOutside => true,
        };
        called && original.destination.port() == stale.frontend.port && reply.source == stale.endpoint
    };
    if original.protocol != UDP || !stale.iter().any(hit) {
        return None;
    }
    let whole = each_attribute(attributes).find(|(kind, _, _)| *kind == TUPLE_ORIGINAL)?.2;
    Some(whole.to_vec())
}

struct Flow {
    protocol: u8,
    source: SocketAddrV4,
    destination: SocketAddrV4,
}

fn flow(tuple: &[u8]) -> Option<Flow> {
    let (ip, protocol) = (attribute(tuple, TUPLE_IP)?, attribute(tuple, TUPLE_PROTOCOL)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(ip, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(attribute(protocol, kind)?.get(..2)?.try_into().ok()?));
    Some(Flow {
        protocol: *attribute(protocol, PROTOCOL_NUMBER)?.first()?,
        source: SocketAddrV4::new(address(IP_SOURCE)?, port(PROTOCOL_SOURCE)?),
        destination: SocketAddrV4::new(address(IP_DESTINATION)?, port(PROTOCOL_DESTINATION)?),
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    each_attribute(bytes).find(|(kind, _, _)| *kind == wanted).map(|(_, value, _)| value)
}

/// Type, value and whole of each attribute, padding included.
fn each_attribute(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        let padded = length.next_multiple_of(4).min(bytes.len());
        let (whole, rest) = bytes.split_at(padded);
        bytes = rest;
        Some((kind, value, whole))
    })
}

/// Forgets in the background; what fails is logged, as traffic recovers by itself within minutes.
pub async fn forget_in_background(stale: Vec<Stale>) {
    let unique: BTreeSet<Stale> = stale.into_iter().collect();
    let stale: Vec<Stale> = unique.into_iter().collect();
    let result = tokio::task::spawn_blocking(move || forget(&stale)).await;
    match result {
        Ok(Ok(0)) | Err(_) => {}
        Ok(Ok(count)) => tracing::debug!(count, "forgot UDP flows to endpoints that are gone"),
        Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "stale UDP flows stay"),
    }
}

//! Times what the design promises, on this machine: a full table, one changed endpoint, one attached pod.
//!
//! Run as root in a network namespace of its own:
//! `ip netns add t && nsenter --net=/var/run/netns/t cargo run --release -p netdata --example measure -- 10000`

#![expect(clippy::disallowed_methods, reason = "measuring is reading the clock")]

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use client::Key;
use netdata::{
    Cidr,
    batch::Batch,
    frontend::{Face, Frontend, Protocol},
    ips::Allocator,
    json,
    links::{Links, PodLink, pod_link_name},
    nft,
    ruleset::{Load, Rules, Ruleset},
    skeleton::{self, Skeleton},
    text,
};

const ROUNDS: usize = 30;
const ENDPOINTS: u32 = 3;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let services: u32 = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let skeleton = Skeleton {
        cluster_cidr: "10.244.0.0/16".parse()?,
        service_cidr: "10.96.0.0/16".parse()?,
        cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
    };
    let mut ruleset = Ruleset::default();
    let started = Instant::now();
    ruleset.apply((0..services).map(|n| (key(n), Some(rules(n, 0, ENDPOINTS)))));
    println!("{services} services of {ENDPOINTS} endpoints, compiled: {:?}", started.elapsed());
    let started = Instant::now();
    nft::apply_text(&skeleton::replace(&skeleton, &ruleset)).await?;
    println!("the whole table put in place: {:?}", started.elapsed());

    let commits = watch_commits()?;
    let mut times: BTreeMap<String, (Vec<Duration>, Vec<Duration>)> = BTreeMap::new();
    for round in 1..=ROUNDS {
        // Both ways in turn, so that what else the machine does falls on both.
        for way in [Way::Typed, Way::Text] {
            let version = u32::try_from(round)? * 2 + u32::from(way == Way::Text);
            let n = u32::try_from(round)? * 97 % services;
            for (what, endpoints) in [("one endpoint replaced", ENDPOINTS), ("one endpoint less", ENDPOINTS - 1)] {
                let (in_force, ended) = timed(&mut ruleset, n, rules(n, version, endpoints), way, &commits).await?;
                let times = times.entry(format!("{what}, {way:?}")).or_default();
                times.0.push(in_force);
                times.1.push(ended);
            }
            nft::apply(&ruleset.apply([(key(n), Some(rules(n, version, ENDPOINTS)))]).batch).await?;
        }
    }
    for (what, (in_force, ended)) in times {
        report(&format!("{what}, until the kernel had it"), in_force);
        report(&format!("{what}, until nft ended"), ended);
    }
    attach().await?;
    nft::apply_typed(&json::delete_table()).await?;
    Ok(())
}

/// How nft is told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Typed,
    Text,
}

impl Way {
    async fn apply(self, batch: &Batch) -> Result<(), Box<dyn Error>> {
        match self {
            Way::Typed => nft::apply_typed(&json::encode(batch).ok_or("the change declares a map")?).await?,
            Way::Text => nft::apply_text(&text::encode(batch)).await?,
        }
        Ok(())
    }
}

/// Until the kernel announced the change, and until nft ended.
async fn timed(
    ruleset: &mut Ruleset,
    n: u32,
    rules: Rules,
    way: Way,
    commits: &mpsc::Receiver<Instant>,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    while commits.try_recv().is_ok() {}
    let started = Instant::now();
    let change = ruleset.apply([(key(n), Some(rules))]);
    way.apply(&change.batch).await?;
    let ended = started.elapsed();
    Ok((commits.recv()?.duration_since(started), ended))
}

/// When the kernel announces a change of nftables (group 7 of netfilter's netlink), which it does at the commit.
fn watch_commits() -> Result<mpsc::Receiver<Instant>, Box<dyn Error>> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (7 - 1)))?;
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // A whole table is more than the socket holds; what is lost then is not measured.
            let _ = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
            if send.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

async fn attach() -> Result<(), Box<dyn Error>> {
    let links = Links::open()?;
    let cidr: Cidr = "10.244.1.0/24".parse()?;
    let gateway = Allocator::gateway(cidr);
    let bridge = links.ensure_bridge(cidr, gateway, 1500).await?;
    let mut allocator = Allocator::new(cidr);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("measure-{}-{round}", std::process::id());
        Command::new("ip").args(["netns", "add", &name]).status()?;
        let netns = PathBuf::from("/var/run/netns").join(&name);
        let started = Instant::now();
        let ip = allocator.allocate(&name)?;
        let link = PodLink { netns: &netns, name: pod_link_name(&name), ip, gateway, mtu: 1500, bridge };
        let connected = links.connect_pod(&link).await;
        times.push(started.elapsed());
        Command::new("ip").args(["netns", "del", &name]).status()?;
        connected?;
    }
    report("one pod attached", times);
    links.delete_ports_of(netdata::links::BRIDGE).await?;
    links.delete(netdata::links::BRIDGE).await?;
    Ok(())
}

fn key(n: u32) -> Key {
    Key::new("default", format!("s{n}"))
}

fn rules(n: u32, version: u32, endpoints: u32) -> Rules {
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + n);
    let frontend = Frontend { face: Face::Vip, ip, protocol: Protocol::Tcp, port: 80 };
    let base = Ipv4Addr::new(10, 244, 0, 0).to_bits();
    let endpoint = |i| {
        // The first changes from version to version; the others stay.
        let moved = if i == 0 { version * 7 } else { 0 };
        SocketAddrV4::new(Ipv4Addr::from_bits(base + (n * ENDPOINTS + i + moved) % 65_000), 8080)
    };
    let load = Load::Spread((0..endpoints).map(endpoint).collect());
    Rules { frontends: BTreeMap::from([(frontend, load)]), local: BTreeSet::new() }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p99 {:?}, least {:?}", at(50), at(99), at(0));
}

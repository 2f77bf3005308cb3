//! Commands in nft's own language: for a whole table, and for the few changes that `json` cannot express.

use std::{
    fmt::{self, Write},
    net::SocketAddrV4,
};

use crate::{
    batch::{Batch, Command, Rule, Slot, TABLE, Target},
    frontend::Face,
};

pub fn encode(batch: &Batch) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = batch.runs().try_for_each(|run| line(&mut text, run));
    text
}

/// The type of the keys of a face's maps.
pub fn key_type(face: Face) -> &'static str {
    match face {
        Face::Vip | Face::VipOutside => "ipv4_addr . inet_proto . inet_service",
        Face::Node | Face::NodeOutside => "inet_proto . inet_service",
    }
}

/// The expression that reads such a key from a packet.
pub fn lookup(face: Face) -> &'static str {
    match face {
        Face::Vip | Face::VipOutside => "ip daddr . meta l4proto . th dport",
        Face::Node | Face::NodeOutside => "meta l4proto . th dport",
    }
}

fn line(to: &mut String, run: &[Command]) -> fmt::Result {
    match &run[0] {
        Command::AddElement { of, .. } => elements(to, "add", of, run),
        Command::DeleteElement { of, .. } => elements(to, "delete", of, run),
        Command::AddSet { name, seconds } => {
            writeln!(to, "add set ip {TABLE} {name} {{ type ipv4_addr; flags dynamic,timeout; timeout {seconds}s; }}")
        }
        Command::AddMap { name, face } => {
            writeln!(to, "add map ip {TABLE} {name} {{ type {} : ipv4_addr . inet_service; }}", key_type(*face))
        }
        Command::AddChain { name } => writeln!(to, "add chain ip {TABLE} {name}"),
        Command::AddRule { chain, rule: it } => {
            write!(to, "add rule ip {TABLE} {chain} ")?;
            rule(to, it)?;
            to.write_char('\n')
        }
        Command::FlushChain { name } => writeln!(to, "flush chain ip {TABLE} {name}"),
        Command::DeleteChain { name } => writeln!(to, "delete chain ip {TABLE} {name}"),
        Command::DeleteMap { name, .. } => writeln!(to, "delete map ip {TABLE} {name}"),
        Command::DeleteSet { name } => writeln!(to, "delete set ip {TABLE} {name}"),
    }
}

fn elements(to: &mut String, verb: &str, of: &str, run: &[Command]) -> fmt::Result {
    write!(to, "{verb} element ip {TABLE} {of} {{ ")?;
    for (index, command) in run.iter().enumerate() {
        if index > 0 {
            to.write_str(", ")?;
        }
        if let Command::AddElement { slot: it, .. } | Command::DeleteElement { slot: it, .. } = command {
            slot(to, it)?;
        }
        match command {
            Command::AddElement { target: Some(Target::Chain(chain)), .. } => write!(to, " : goto {chain}")?,
            Command::AddElement { target: Some(Target::Endpoint(it)), .. } => write!(to, " : {}", endpoint(it))?,
            _ => {}
        }
    }
    to.write_str(" }\n")
}

fn slot(to: &mut String, slot: &Slot) -> fmt::Result {
    match slot {
        Slot::Itself(ip) => write!(to, "{ip} . {ip}"),
        Slot::Frontend(it) => match it.face {
            Face::Vip | Face::VipOutside => write!(to, "{} . {} . {}", it.ip, it.protocol, it.port),
            Face::Node | Face::NodeOutside => write!(to, "{} . {}", it.protocol, it.port),
        },
    }
}

fn rule(to: &mut String, rule: &Rule) -> fmt::Result {
    match rule {
        Rule::DnatByMap { face, map } => write!(to, "dnat to {} map @{map}", lookup(*face)),
        Rule::Draw { chains } => {
            let arms = chains.iter().map(|chain| format!("goto {chain}"));
            write!(to, "numgen random mod {} vmap {{ {} }}", chains.len(), numbered(arms))
        }
        Rule::DnatDraw { protocol, endpoints } => {
            let (count, arms) = (endpoints.len(), numbered(endpoints.iter().map(endpoint)));
            write!(to, "meta l4proto {protocol} dnat to numgen random mod {count} map {{ {arms} }}")
        }
        Rule::Dnat { protocol, endpoint } => write!(to, "meta l4proto {protocol} dnat to {endpoint}"),
        Rule::DropOthers { sources } => {
            let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
            write!(to, "ip saddr != {{ {} }} drop", sources.join(", "))
        }
        Rule::GotoIfSeen { set, chain } => write!(to, "ip saddr @{set} goto {chain}"),
        Rule::Remember { set, seconds } => write!(to, "update @{set} {{ ip saddr timeout {seconds}s }}"),
    }
}

fn numbered(arms: impl Iterator<Item = String>) -> String {
    let arms: Vec<String> = arms.enumerate().map(|(index, arm)| format!("{index} : {arm}")).collect();
    arms.join(", ")
}

fn endpoint(endpoint: &SocketAddrV4) -> String {
    format!("{} . {}", endpoint.ip(), endpoint.port())
}

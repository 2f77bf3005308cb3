//! Commands as typed values of the `nftables` crate, which nft reads as JSON: for every change of a table that stands.
//!
//! Two things have no such value. The parser of nft 1.0.6 takes the declaration of a map whose values are
//! `address . port` for a set, so a batch that declares one is written as text, and a whole table always is. And the
//! crate writes the verdict `drop` of an element in a way that nft does not read, so an element leads to a chain.

use nftables::{
    batch::Batch as Transaction,
    expr::{Elem, Expression, Map as Mapping, Meta, MetaKey, NamedExpression, NgMode, Numgen, Payload, PayloadField},
    expr::{Prefix, SetItem, Verdict},
    schema::{Chain, Element, FlushObject, Map, NfCmd, NfListObject, Nftables, Rule as RuleOf, Set, SetFlag, SetType},
    schema::{SetTypeValue, Table},
    stmt::{self, JumpTarget, Match, NAT, Operator, SetOp, Statement, VerdictMap},
    types::NfFamily,
};

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::{
    batch::{Batch, Command, Rule, Slot, TABLE, Target},
    cidr::Cidr,
    frontend::{Face, Protocol},
};

const FAMILY: NfFamily = NfFamily::IP;

/// The same commands, or none if one of them declares a map.
pub fn encode(batch: &Batch) -> Option<Nftables<'_>> {
    let mut transaction = Transaction::new();
    for run in batch.runs() {
        transaction.add_cmd(command(run)?);
    }
    Some(transaction.to_nftables())
}

/// Takes the table away. Deleting what may be absent is an error, so it is added first.
pub fn delete_table() -> Nftables<'static> {
    let table = || NfListObject::Table(Table { family: FAMILY, name: TABLE.into(), handle: None });
    let mut transaction = Transaction::new();
    transaction.add(table());
    transaction.delete(table());
    transaction.to_nftables()
}

fn command(run: &[Command]) -> Option<NfCmd<'_>> {
    Some(match &run[0] {
        Command::AddElement { of, .. } => NfCmd::Add(elements(of, run)),
        Command::DeleteElement { of, .. } => NfCmd::Delete(elements(of, run)),
        // That a rule adds to the set (`dynamic`) nft itself finds out; told so in JSON it would refuse the word.
        Command::AddSet { name, seconds } => NfCmd::Add(NfListObject::Set(Box::new(Set {
            flags: Some([SetFlag::Timeout].into()),
            timeout: Some(*seconds),
            ..set(name)
        }))),
        Command::AddMap { .. } => return None,
        Command::AddChain { name } => NfCmd::Add(NfListObject::Chain(chain(name))),
        Command::AddRule { chain, rule } => NfCmd::Add(NfListObject::Rule(RuleOf {
            family: FAMILY,
            table: TABLE.into(),
            chain: chain.into(),
            expr: statements(rule).into(),
            ..RuleOf::default()
        })),
        Command::FlushChain { name } => NfCmd::Flush(FlushObject::Chain(chain(name))),
        Command::DeleteChain { name } => NfCmd::Delete(NfListObject::Chain(chain(name))),
        Command::DeleteMap { name, face } => NfCmd::Delete(NfListObject::Map(Box::new(Map {
            family: FAMILY,
            table: TABLE.into(),
            name: name.into(),
            set_type: SetTypeValue::Concatenated(key_type(*face).into()),
            map: SetTypeValue::Concatenated([SetType::Ipv4Addr, SetType::InetService][..].into()),
            ..Map::default()
        }))),
        Command::DeleteSet { name } => NfCmd::Delete(NfListObject::Set(Box::new(set(name)))),
    })
}

fn chain(name: &str) -> Chain<'_> {
    Chain { family: FAMILY, table: TABLE.into(), name: name.into(), ..Chain::default() }
}

/// A set of clients.
fn set(name: &str) -> Set<'_> {
    Set {
        family: FAMILY,
        table: TABLE.into(),
        name: name.into(),
        set_type: SetTypeValue::Single(SetType::Ipv4Addr),
        ..Set::default()
    }
}

fn key_type(face: Face) -> &'static [SetType] {
    match face {
        Face::Vip | Face::VipOutside => &[SetType::Ipv4Addr, SetType::InetProto, SetType::InetService],
        Face::Node | Face::NodeOutside => &[SetType::InetProto, SetType::InetService],
    }
}

fn elements<'a>(of: &'a str, run: &'a [Command]) -> NfListObject<'a> {
    let all = run.iter().filter_map(|command| match command {
        Command::AddElement { slot: it, target: None, .. } | Command::DeleteElement { slot: it, .. } => Some(slot(it)),
        Command::AddElement { slot: it, target: Some(to), .. } => Some(Expression::List(vec![slot(it), target(to)])),
        _ => None,
    });
    NfListObject::Element(Element { family: FAMILY, table: TABLE.into(), name: of.into(), elem: all.collect() })
}

fn slot(slot: &Slot) -> Expression<'static> {
    match slot {
        Slot::Itself(ip) => concat(vec![address(*ip), address(*ip)]),
        Slot::Frontend(it) => {
            let mut parts = vec![Expression::String(it.protocol.name().into()), Expression::Number(it.port.into())];
            if let Face::Vip | Face::VipOutside = it.face {
                parts.insert(0, address(it.ip));
            }
            concat(parts)
        }
    }
}

fn target(target: &Target) -> Expression<'_> {
    match target {
        Target::Chain(chain) => Expression::Verdict(Verdict::Goto(JumpTarget { target: chain.into() })),
        Target::Endpoint(it) => endpoint(it),
    }
}

fn statements(rule: &Rule) -> Vec<Statement<'_>> {
    match rule {
        Rule::DnatByMap { face, map } => {
            vec![dnat(mapped(lookup(*face), Expression::String(format!("@{map}").into())), None)]
        }
        Rule::Draw { chains } => {
            let arms = chains.iter().map(|to| Expression::Verdict(Verdict::Goto(JumpTarget { target: to.into() })));
            vec![Statement::VerdictMap(VerdictMap { key: chance(chains.len()), data: numbered(arms) })]
        }
        Rule::DnatDraw { protocol, endpoints } => {
            let drawn = mapped(chance(endpoints.len()), numbered(endpoints.iter().map(endpoint)));
            vec![only(*protocol), dnat(drawn, None)]
        }
        Rule::Dnat { protocol, endpoint } => {
            vec![only(*protocol), dnat(address(*endpoint.ip()), Some(Expression::Number(endpoint.port().into())))]
        }
        Rule::DropOthers { sources } => {
            let sources = sources.iter().map(|source| SetItem::Element(network(source))).collect();
            let sources = Expression::Named(NamedExpression::Set(sources));
            let matches = Match { left: payload("ip", "saddr"), right: sources, op: Operator::NEQ };
            vec![Statement::Match(matches), Statement::Drop(None)]
        }
        Rule::GotoIfSeen { set, chain } => {
            let set = Expression::String(format!("@{set}").into());
            let matches = Match { left: payload("ip", "saddr"), right: set, op: Operator::EQ };
            vec![Statement::Match(matches), Statement::Goto(JumpTarget { target: chain.into() })]
        }
        Rule::Remember { set, seconds } => {
            let caller = Elem {
                val: Box::new(payload("ip", "saddr")),
                timeout: Some(*seconds),
                expires: None,
                comment: None,
                counter: None,
            };
            vec![Statement::Set(stmt::Set {
                op: SetOp::Update,
                elem: Expression::Named(NamedExpression::Elem(caller)),
                set: format!("@{set}").into(),
            })]
        }
    }
}

fn dnat<'a>(addr: Expression<'a>, port: Option<Expression<'a>>) -> Statement<'a> {
    Statement::DNAT(Some(NAT { addr: Some(addr), family: None, port, flags: None }))
}

fn mapped<'a>(key: Expression<'a>, data: Expression<'a>) -> Expression<'a> {
    Expression::Named(NamedExpression::Map(Box::new(Mapping { key, data })))
}

/// nft must know that a packet has ports before it changes one.
fn only(protocol: Protocol) -> Statement<'static> {
    let right = Expression::String(protocol.name().into());
    Statement::Match(Match { left: l4proto(), right, op: Operator::EQ })
}

/// The expression that reads the key of a face's maps from a packet.
fn lookup(face: Face) -> Expression<'static> {
    let mut parts = vec![l4proto(), payload("th", "dport")];
    if let Face::Vip | Face::VipOutside = face {
        parts.insert(0, payload("ip", "daddr"));
    }
    concat(parts)
}

/// One of the numbers below this.
fn chance(below: usize) -> Expression<'static> {
    // A service has thousands of endpoints at most.
    let ng_mod = u32::try_from(below).unwrap_or(u32::MAX);
    Expression::Named(NamedExpression::Numgen(Numgen { mode: NgMode::Random, ng_mod, offset: None }))
}

fn numbered<'a>(arms: impl Iterator<Item = Expression<'a>>) -> Expression<'a> {
    let arms = (0..).zip(arms).map(|(number, arm)| SetItem::Mapping(Expression::Number(number), arm));
    Expression::Named(NamedExpression::Set(arms.collect()))
}

fn l4proto() -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::L4proto }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn concat(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

fn endpoint(endpoint: &SocketAddrV4) -> Expression<'static> {
    concat(vec![address(*endpoint.ip()), Expression::Number(endpoint.port().into())])
}

fn address(ip: Ipv4Addr) -> Expression<'static> {
    Expression::String(ip.to_string().into())
}

fn network(cidr: &Cidr) -> Expression<'static> {
    let prefix = Prefix { addr: Box::new(address(cidr.base())), len: cidr.prefix().into() };
    Expression::Named(NamedExpression::Prefix(prefix))
}

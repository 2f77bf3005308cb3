//! Real traffic through real rules: nodes, pods and a stranger, each in a network namespace of its own.

mod support;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use client::Key;
use netdata::{
    Config, Netdata,
    batch::Batch,
    frontend::{Face, Frontend, Protocol},
    json, nft,
    ruleset::{Load, Rules, Ruleset, Special},
    skeleton::{self, Skeleton},
};
use serde_json::json;
use support::{
    Host, Netns, PATIENCE, SILENCE,
    api::{self, Api, NAMESPACES, NODES, SERVICES, SLICES, service, slice},
    eventually, wire,
};

const DNS: &str = "10.96.0.10";

/// A node: a host on which netdata runs.
struct Node {
    host: Host,
    name: String,
    ip: String,
    dir: PathBuf,
    netdata: Option<Arc<Netdata>>,
}

impl Node {
    fn new(name: &str, ip: &str) -> Node {
        let host = Host::new(name);
        let dir = std::env::temp_dir().join(&host.netns.name);
        Node { host, name: name.to_owned(), ip: ip.to_owned(), dir, netdata: None }
    }

    fn start(&mut self, api: &Api) {
        let config = Config {
            node_name: self.name.clone(),
            node_ip: self.ip.parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            cluster_dns: DNS.parse().unwrap(),
            data_dir: self.dir.join("data"),
            run_dir: self.dir.join("run"),
        };
        let client = api.client();
        self.netdata = Some(Arc::new(self.host.on(async move { Netdata::start(config, client).await.unwrap() })));
    }

    fn pod(&self, name: &str) -> Pod {
        let netns = Netns::new(name);
        let ip = self.attach(&netns, name);
        netns.serve(name, 8080);
        Pod { netns, ip }
    }

    fn attach(&self, netns: &Netns, uid: &str) -> Ipv4Addr {
        let (netdata, path, uid) = (Arc::clone(self.netdata.as_ref().unwrap()), netns.path(), uid.to_owned());
        let attachment = self.host.on(async move { netdata.attach(&path, &uid).await.unwrap() });
        attachment.ip.to_string().parse().unwrap()
    }

    fn with<T, F>(&self, f: impl FnOnce(Arc<Netdata>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.host.on(f(Arc::clone(self.netdata.as_ref().unwrap())))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Pod {
    netns: Netns,
    ip: Ipv4Addr,
}

impl Pod {
    fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The tables of a host with their numbers, which tell whether a table was replaced.
fn tables(node: &Node) -> String {
    let (ok, text) = node.host.netns.exec("nft", "-j list tables");
    assert!(ok && text.contains("handle"), "{text}");
    text
}

/// Two nodes and a stranger on one switch; a third node behind the router that the switch's namespace is.
struct Lan {
    api: Api,
    a: Node,
    b: Node,
    stranger: Netns,
    _switch: Netns,
}

impl Lan {
    fn new() -> Lan {
        let switch = Netns::new("switch");
        switch.ip("link add br0 type bridge");
        switch.ip("addr add 192.168.77.254/24 dev br0");
        switch.ip("link set br0 up");
        let (a, b) = (Node::new("node-a", "192.168.77.1"), Node::new("node-b", "192.168.77.2"));
        let stranger = Netns::new("stranger");
        for (netns, ip) in
            [(&a.host.netns, "192.168.77.1"), (&b.host.netns, "192.168.77.2"), (&stranger, "192.168.77.9")]
        {
            let port = format!("p{}", ip.rsplit('.').next().unwrap());
            wire(&switch, &port, netns, "uplink");
            switch.ip(&format!("link set {port} master br0"));
            netns.ip(&format!("addr add {ip}/24 dev uplink"));
        }
        let api = Api::default();
        api.put(NAMESPACES, api::namespace("default"));
        api.put(NODES, api::node("node-a", "192.168.77.1", "10.244.1.0/24"));
        api.put(NODES, api::node("node-b", "192.168.77.2", "10.244.2.0/24"));
        // Rules hold whether or not the kernel shows them what is bridged; hosts have it either way.
        for (node, shown) in [(&a, 1), (&b, 0)] {
            node.host.netns.exec("sysctl", &format!("-qw net.bridge.bridge-nf-call-iptables={shown}"));
            node.host.netns.exec("sysctl", "-qw net.ipv4.conf.all.accept_redirects=0");
        }
        let mut lan = Lan { api, a, b, stranger, _switch: switch };
        lan.a.start(&lan.api);
        lan.b.start(&lan.api);
        lan
    }
}

#[test]
fn pods_and_services_reach_each_other() {
    let lan = Lan::new();
    let (pod_a, pod_b) = (lan.a.pod("pod-a"), lan.b.pod("pod-b"));
    let (ip_a, ip_b) = (pod_a.ip.to_string(), pod_b.ip.to_string());

    // Pod to pod, and each sees the other's own address.
    assert_eq!(pod_a.netns.call_all(pod_b.at(8080), &["pod-b"]), [&*ip_a]);
    assert_eq!(pod_b.netns.call_all(pod_a.at(8080), &["pod-a"]), [&*ip_b]);
    let neighbour = lan.a.pod("pod-a2");
    assert_eq!(neighbour.netns.call_all(pod_a.at(8080), &["pod-a"]), [neighbour.ip.to_string()]);

    // A cluster address: the caller's address is kept; only who reaches himself is masqueraded.
    lan.api.put(
        SERVICES,
        service(
            "web",
            json!({"clusterIP": "10.96.1.1", "type": "NodePort", "ports": [
        {"name": "web", "port": 80, "nodePort": 30090}]}),
        ),
    );
    lan.api.put(SLICES, slice("web", &[(&ip_a, "node-a"), (&ip_b, "node-b")]));
    let seen = pod_a.netns.call_all(at("10.96.1.1:80"), &["pod-a", "pod-b"]);
    assert_eq!(seen, ["10.244.1.1".to_owned(), ip_a.clone()]);
    let before = [tables(&lan.a), tables(&lan.b)];
    let seen = neighbour.netns.call_all(at("10.96.1.1:80"), &["pod-a", "pod-b"]);
    assert_eq!(seen, [neighbour.ip.to_string(), neighbour.ip.to_string()]);

    // From the nodes themselves.
    assert_eq!(lan.a.host.netns.call_all(at("10.96.1.1:80"), &["pod-a", "pod-b"]), ["10.244.1.1", "10.244.1.1"]);

    // A node port, on every node, from outside, inside and the node: to other nodes' pods by way of the node.
    let seen = lan.stranger.call_all(at("192.168.77.1:30090"), &["pod-a", "pod-b"]);
    assert_eq!(seen, ["192.168.77.9", "192.168.77.1"]);
    lan.stranger.call_all(at("192.168.77.2:30090"), &["pod-a", "pod-b"]);
    assert_eq!(neighbour.netns.call_all(at("192.168.77.1:30090"), &["pod-b"]), [neighbour.ip.to_string()]);
    neighbour.netns.call_all(at("192.168.77.2:30090"), &["pod-b"]);
    lan.b.host.netns.call_all(at("192.168.77.2:30090"), &["pod-a", "pod-b"]);

    // One endpoint less: nobody is sent to it any more.
    lan.api.put(SLICES, slice("web", &[(&ip_b, "node-b")]));
    eventually("only pod-b answers", || {
        let answers: Vec<_> = (0..20).map(|_| neighbour.netns.call(at("10.96.1.1:80"))).collect();
        let good = answers.iter().all(|answer| matches!(answer, Ok((name, _)) if name == "pod-b"));
        if good { Ok(()) } else { Err(format!("{answers:?}")) }
    });

    // None at all: refused at once, wherever one asks. So is an address of no service.
    lan.api.put(SLICES, slice("web", &[]));
    let callers = [&neighbour.netns, &lan.a.host.netns, &lan.stranger];
    for (caller, to) in callers.into_iter().zip(["10.96.1.1:80", "10.96.1.1:80", "192.168.77.1:30090"]) {
        eventually("a service without endpoints refuses", || match caller.call(at(to)) {
            Err(ErrorKind::ConnectionRefused) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    assert_eq!(neighbour.netns.call(at("10.96.200.200:80")), Err(ErrorKind::ConnectionRefused));

    // A pod that calls out of the cluster comes under its node's address.
    lan.stranger.serve("stranger", 9090);
    assert_eq!(pod_b.netns.call_all(at("192.168.77.9:9090"), &["stranger"]), ["192.168.77.2"]);
    assert_eq!([tables(&lan.a), tables(&lan.b)], before, "no change was refused, which would have replaced the table");
}

#[test]
fn policies_and_affinity_are_kept() {
    let lan = Lan::new();
    let (pod_a, pod_b, pod_b2) = (lan.a.pod("pod-a"), lan.b.pod("pod-b"), lan.b.pod("pod-b2"));
    let (ip_a, ip_b, ip_b2) = (pod_a.ip.to_string(), pod_b.ip.to_string(), pod_b2.ip.to_string());

    // externalTrafficPolicy Local: the endpoint sees the stranger, and a node without one stays silent.
    lan.api.put(
        SERVICES,
        service(
            "local",
            json!({"clusterIP": "10.96.2.1", "type": "LoadBalancer",
        "externalTrafficPolicy": "Local", "externalIPs": ["192.168.77.2"],
        "ports": [{"name": "web", "port": 80, "nodePort": 30091}]}),
        ),
    );
    lan.api.put(SLICES, slice("local", &[(&ip_b, "node-b")]));
    assert_eq!(lan.stranger.call_all(at("192.168.77.2:30091"), &["pod-b"]), ["192.168.77.9"]);
    pod_a.netns.call_all(at("192.168.77.2:30091"), &["pod-b"]);
    let before = [tables(&lan.a), tables(&lan.b)];
    assert_eq!(lan.stranger.call_all(at("192.168.77.2:80"), &["pod-b"]), ["192.168.77.9"]);
    eventually("the other node drops", || match lan.stranger.call(at("192.168.77.1:30091")) {
        Err(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(pod_a.netns.call_all(at("192.168.77.1:30091"), &["pod-b"]), [&*ip_a]);

    // Session affinity: one client, one endpoint, also from the node port's side.
    lan.api.put(SERVICES, service("sticky", json!({"clusterIP": "10.96.2.2", "sessionAffinity": "ClientIP"})));
    lan.api.put(SLICES, slice("sticky", &[(&ip_a, "node-a"), (&ip_b, "node-b"), (&ip_b2, "node-b")]));
    let first =
        eventually("the sticky service answers", || pod_a.netns.call(at("10.96.2.2:80")).map_err(|e| format!("{e}")));
    for _ in 0..30 {
        assert_eq!(pod_a.netns.call(at("10.96.2.2:80")).unwrap().0, first.0);
    }
    // Its endpoint goes: another takes over, and keeps the client as well.
    let rest: Vec<_> = [("pod-a", &ip_a, "node-a"), ("pod-b", &ip_b, "node-b"), ("pod-b2", &ip_b2, "node-b")]
        .into_iter()
        .filter(|(name, _, _)| *name != first.0)
        .map(|(_, ip, node)| (ip.as_str(), node))
        .collect();
    lan.api.put(SLICES, slice("sticky", &rest));
    let second = eventually("another takes over", || match pod_a.netns.call(at("10.96.2.2:80")) {
        Ok((name, _)) if name != first.0 => Ok(name),
        other => Err(format!("{other:?}")),
    });
    for _ in 0..30 {
        assert_eq!(pod_a.netns.call(at("10.96.2.2:80")).unwrap().0, second);
    }

    // A load balancer's address takes only the callers it names.
    let mut guarded = service(
        "guarded",
        json!({"clusterIP": "10.96.2.3", "type": "LoadBalancer",
        "loadBalancerSourceRanges": ["10.244.0.0/16", "10.244.1.0/24"]}),
    );
    guarded["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.168.77.1"}]}});
    lan.api.put(SERVICES, guarded);
    lan.api.put(SLICES, slice("guarded", &[(&ip_a, "node-a"), (&ip_b, "node-b")]));
    pod_b.netns.call_all(at("192.168.77.1:80"), &["pod-b"]);
    eventually("a stranger is not let in", || match lan.stranger.call(at("192.168.77.1:80")) {
        Err(ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // UDP: a client that keeps its socket is not left with an endpoint that is gone.
    lan.api.put(SERVICES, service("dgram", json!({"clusterIP": "10.96.2.4"})));
    lan.api.put(SLICES, slice("dgram", &[(&ip_b, "node-b")]));
    let api = lan.api.clone();
    let swapped = slice("dgram", &[(&ip_b2, "node-b")]);
    let chat = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let ask = |wanted: &str| {
            eventually(&format!("{wanted} answers by UDP"), || {
                let mut buffer = [0; 64];
                socket.send_to(b"?", "10.96.2.4:80").map_err(|e| e.to_string())?;
                let (length, _) = socket.recv_from(&mut buffer).map_err(|e| e.to_string())?;
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.starts_with(&format!("{wanted} ")) { Ok(()) } else { Err(text) }
            });
        };
        ask("pod-b");
        api.put(SLICES, swapped);
        ask("pod-b2");
    };
    pod_a.netns.inside(chat).join().unwrap();
    assert_eq!([tables(&lan.a), tables(&lan.b)], before, "no change was refused, which would have replaced the table");
}

/// Answers every question by UDP with one address.
fn name_server(netns: &Netns, at: Ipv4Addr) {
    let (ready, wait) = std::sync::mpsc::channel();
    netns.inside(move || {
        let socket = UdpSocket::bind((at, 53)).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // The question: labels up to an empty one, then type and class.
            let name = buffer[12..length].iter().position(|b| *b == 0).unwrap();
            let mut answer = buffer[..12 + name + 5].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 33]);
            socket.send_to(&answer, from).unwrap();
        }
    });
    wait.recv().unwrap();
}

#[test]
fn names_are_answered() {
    let lan = Lan::new();
    let pod = lan.a.pod("pod-a");
    lan.api.put(SERVICES, service("web", json!({"clusterIP": "10.96.1.1"})));
    lan.api.put(SERVICES, service("own", json!({"clusterIP": "None"})));
    lan.api.put(SLICES, slice("own", &[("10.244.2.7", "node-b"), ("10.244.1.9", "node-a")]));
    let dig = |netns: &Netns, words: &str| {
        let (good, text) = netns.exec("dig", &format!("@{DNS} +time=2 +tries=1 {words}"));
        assert!(good, "{text}");
        text
    };
    eventually("the service has a name", || match dig(&pod.netns, "+short web.default.svc.cluster.local").trim() {
        "10.96.1.1" => Ok(()),
        other => Err(other.to_owned()),
    });
    for (words, expected) in [
        ("+short +tcp WEB.default.svc.Cluster.Local", "10.96.1.1\n"),
        ("+short web.default.svc.cluster.local AAAA", ""),
        ("+short _web._tcp.web.default.svc.cluster.local SRV", "0 100 80 web.default.svc.cluster.local.\n"),
        ("+short +nottlid own.default.svc.cluster.local", "10.244.1.9\n10.244.2.7\n"),
        ("+short 10-244-2-7.own.default.svc.cluster.local", "10.244.2.7\n"),
        ("+short 10-1-2-3.default.pod.cluster.local", "10.1.2.3\n"),
        ("+short -x 10.96.1.1", "web.default.svc.cluster.local.\n"),
        ("+short -x 10.244.2.7", "10-244-2-7.own.default.svc.cluster.local.\n"),
    ] {
        for netns in [&pod.netns, &lan.b.host.netns] {
            eventually(words, || match dig(netns, words) {
                text if text == expected => Ok(()),
                text => Err(text),
            });
        }
    }
    let missing = dig(&pod.netns, "nothing.default.svc.cluster.local");
    assert!(missing.contains("status: NXDOMAIN") && missing.contains("SOA"), "{missing}");

    // Other names are the host's servers' business: there is none in reach, and then there is one. Not every machine
    // that runs this names a server, and then there is nothing to relay to.
    let host = &lan.b.host.netns;
    let failed = dig(host, "example.com");
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let named = text.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse::<Ipv4Addr>().ok());
    if let Some(server) = named {
        if !server.is_loopback() {
            host.ip(&format!("addr add {server}/32 dev lo"));
        }
        name_server(host, server);
        assert_eq!(dig(host, "+short example.com"), "192.0.2.33\n");
        lan.api.put(SERVICES, service("out", json!({"type": "ExternalName", "externalName": "example.com"})));
        eventually("an alias is followed", || match dig(host, "+short out.default.svc.cluster.local") {
            text if text == "example.com.\n192.0.2.33\n" => Ok(()),
            text => Err(text),
        });
    }
    let no_data = dig(&pod.netns, "web.default.svc.cluster.local AAAA");
    assert!(no_data.contains("status: NOERROR") && no_data.contains("SOA") && no_data.contains("aa"), "{no_data}");
}

#[test]
fn a_restart_keeps_everything_and_a_removal_nothing() {
    let mut lan = Lan::new();
    let (pod_a, pod_b) = (lan.a.pod("pod-a"), lan.b.pod("pod-b"));
    let before = lan.a.host.netns.ip("-br link show up");
    lan.api.put(SERVICES, service("web", json!({"clusterIP": "10.96.1.1"})));
    lan.api.put(SLICES, slice("web", &[(&pod_b.ip.to_string(), "node-b")]));
    pod_a.netns.call_all(at("10.96.1.1:80"), &["pod-b"]);

    // No call fails while the agent stops, is away and comes back.
    let stop = Arc::new(AtomicBool::new(false));
    let caller = {
        let stop = Arc::clone(&stop);
        pod_a.netns.inside(move || {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut text = String::new();
                let mut stream = TcpStream::connect_timeout(&at("10.96.1.1:80"), PATIENCE).expect("a call fails");
                stream.read_to_string(&mut text).expect("an answer is missing");
                assert!(text.starts_with("pod-b"));
                calls += 1;
            }
            calls
        })
    };
    lan.a.with(|netdata| async move { netdata.stop().await });
    lan.a.netdata = None;
    lan.a.start(&lan.api);
    let third = lan.a.pod("pod-c");
    assert_ne!(third.ip, pod_a.ip, "an address in use is not given again");
    assert_eq!(lan.a.attach(&pod_a.netns, "pod-a"), pod_a.ip, "the pod keeps its address");
    third.netns.call_all(at("10.96.1.1:80"), &["pod-b"]);
    // Nor while the table is replaced, whatever packet is underway in it: about one call in 200 replacements would be.
    let (_, rules) = lan.a.host.netns.exec("nft", "list table ip minik8s");
    let script = lan.a.dir.join("replace.nft");
    std::fs::write(&script, format!("add table ip minik8s\ndelete table ip minik8s\n{rules}")).unwrap();
    for _ in 0..500 {
        let (replaced, said) = lan.a.host.netns.exec("nft", &format!("-f {}", script.display()));
        assert!(replaced, "{said}");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(caller.join().unwrap() > 0);

    // What someone else takes away comes back: a firewall's restart takes the rules, a link's fall its routes.
    lan.a.host.netns.exec("nft", "flush ruleset");
    lan.api.put(SERVICES, service("other", json!({"clusterIP": "10.96.1.2"})));
    third.netns.call_all(at("10.96.1.1:80"), &["pod-b"]);
    lan.a.host.netns.ip("link set uplink down");
    lan.a.host.netns.ip("link set uplink up");
    third.netns.call_all(pod_b.at(8080), &["pod-b"]);

    // Detached twice, and after its namespace is gone: no matter. The address becomes free.
    drop(third.netns);
    lan.a.with(|netdata| async move {
        for _ in 0..2 {
            netdata.detach("pod-c").await.unwrap();
        }
        netdata.detach("pod-a").await.unwrap();
    });
    // A node that goes takes its route along.
    assert!(lan.b.host.netns.ip("route").contains("10.244.1.0/24"));
    lan.api.delete(NODES, api::node("node-a", "192.168.77.1", "10.244.1.0/24"));
    eventually("the route goes", || {
        let routes = lan.b.host.netns.ip("route");
        if routes.contains("10.244.1.0/24") { Err(routes) } else { Ok(()) }
    });

    lan.a.with(|netdata| async move { netdata.remove_all().await.unwrap() });
    let netns = &lan.a.host.netns;
    assert_eq!(netns.exec("nft", "list ruleset"), (true, String::new()));
    assert_eq!(netns.ip("-br link show up").lines().count(), 2, "before: {before}");
    assert_eq!(netns.ip("route"), "192.168.77.0/24 dev uplink proto kernel scope link src 192.168.77.1 \n");
    assert!(!netns.ip("addr").contains(DNS));
    for (setting, was) in [("ip_forward", 0), ("conf/all/accept_redirects", 0), ("conf/all/send_redirects", 1)] {
        assert_eq!(netns.exec("cat", &format!("/proc/sys/net/ipv4/{setting}")).1, format!("{was}\n"), "{setting}");
    }
    assert!(!lan.a.dir.join("run/network").exists() && !lan.a.dir.join("data/network").exists());
}

#[test]
fn nodes_behind_a_router_are_reached_by_vxlan() {
    let mut lan = Lan::new();
    let router = &lan._switch;
    router.exec("sysctl", "-qw net.ipv4.ip_forward=1");
    let mut far = Node::new("node-c", "192.168.78.3");
    wire(router, "far", &far.host.netns, "uplink");
    router.ip("addr add 192.168.78.254/24 dev far");
    far.host.netns.ip("addr add 192.168.78.3/24 dev uplink");
    far.host.netns.ip("route add default via 192.168.78.254");
    for netns in [&lan.a.host.netns, &lan.b.host.netns] {
        netns.ip("route add default via 192.168.77.254");
    }
    lan.api.put(NODES, api::node("node-c", "192.168.78.3", "10.244.3.0/24"));
    far.start(&lan.api);
    let (near_pod, far_pod) = (lan.a.pod("pod-a"), far.pod("pod-c"));
    assert_eq!(near_pod.netns.call_all(far_pod.at(8080), &["pod-c"]), [near_pod.ip.to_string()]);
    assert_eq!(far_pod.netns.call_all(near_pod.at(8080), &["pod-a"]), [far_pod.ip.to_string()]);
    lan.api.put(
        SERVICES,
        service(
            "web",
            json!({"clusterIP": "10.96.1.1", "type": "NodePort", "ports": [
        {"name": "web", "port": 80, "nodePort": 30090}]}),
        ),
    );
    lan.api.put(SLICES, slice("web", &[(&far_pod.ip.to_string(), "node-c")]));
    assert_eq!(near_pod.netns.call_all(at("10.96.1.1:80"), &["pod-c"]), [near_pod.ip.to_string()]);
    lan.a.host.netns.call_all(at("10.96.1.1:80"), &["pod-c"]);
    lan.a.host.netns.call_all(far_pod.at(8080), &["pod-c"]);
    lan.stranger.call_all(at("192.168.77.1:30090"), &["pod-c"]);

    // A new agent takes the tunnel over as it is.
    let shown = lan.a.host.netns.ip("-o link show mk8s-vxlan");
    lan.a.with(|netdata| async move { netdata.stop().await });
    lan.a.start(&lan.api);
    near_pod.netns.call_all(far_pod.at(8080), &["pod-c"]);
    let number = |shown: &str| shown.split(':').next().map(str::to_owned);
    assert_eq!(number(&lan.a.host.netns.ip("-o link show mk8s-vxlan")), number(&shown));

    // More than fits one packet, so that a wrong size of packets would show.
    const MUCH: usize = 4 << 20;
    let server = far_pod.netns.inside(|| {
        let listener = TcpListener::bind("0.0.0.0:7070").unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&vec![7; MUCH]).unwrap();
    });
    let to = far_pod.at(7070);
    let received = near_pod.netns.inside(move || {
        let mut stream = eventually("the server listens", || TcpStream::connect(to).map_err(|e| e.to_string()));
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    assert_eq!(received.join().unwrap(), MUCH);
    server.join().unwrap();

    far.with(|netdata| async move { netdata.remove_all().await.unwrap() });
    let rest = far.host.netns.ip("-br link");
    assert!(!rest.contains("mk8s0") && !rest.contains("mk8s-vxlan"), "{rest}");
    lan.api.delete(NODES, api::node("node-c", "192.168.78.3", "10.244.3.0/24"));
    eventually("the tunnel goes", || {
        let rest = lan.a.host.netns.ip("neigh show dev mk8s-vxlan") + &lan.a.host.netns.ip("route show proto 109");
        if rest.contains("10.244.3.0") || rest.contains("192.168.78.3") { Err(rest) } else { Ok(()) }
    });
    lan.a.netdata = None;
}

/// The blocks of a host's table, in an order of their own; rules stay in theirs.
fn table(host: &Host) -> BTreeSet<Vec<String>> {
    let (ok, text) = host.netns.exec("nft", "list table ip minik8s");
    assert!(ok, "{text}");
    let body = text.split_once('{').unwrap().1;
    let block = |block: &str| {
        let mut lines: Vec<String> = if block.trim_start().starts_with("chain") {
            block.lines().map(|line| line.trim().to_owned()).collect()
        } else {
            block.split(['\n', ',', '=', '{', '}']).map(|piece| piece.trim().to_owned()).collect()
        };
        lines.retain(|line| !line.is_empty() && line != "}");
        if !block.trim_start().starts_with("chain") {
            lines[1..].sort();
        }
        lines
    };
    body.split("\n\n").map(block).collect()
}

/// What one service asks for at four frontends, step by step.
fn steps() -> Vec<(&'static str, Rules)> {
    let to = |n: u8| SocketAddrV4::new(Ipv4Addr::new(10, 244, 1, n), 8080);
    let spread = |all: &[u8]| Load::Spread(all.iter().map(|n| to(*n)).collect());
    let special = |all: &[u8], affinity_seconds, sources: &[&str]| {
        let sources = sources.iter().map(|source| source.parse().unwrap()).collect();
        Load::Special(Special { endpoints: all.iter().map(|n| to(*n)).collect(), affinity_seconds, sources })
    };
    let rules = |vip: Load, outside: Load, node: Load, local: &[u8]| {
        let ip = Ipv4Addr::new(10, 96, 0, 1);
        let at = |face, protocol| match face {
            Face::Vip | Face::VipOutside => Frontend { face, ip, protocol, port: 80 },
            Face::Node | Face::NodeOutside => Frontend { face, ip: Ipv4Addr::UNSPECIFIED, protocol, port: 30080 },
        };
        let frontends = [
            (at(Face::Vip, Protocol::Tcp), vip),
            (at(Face::VipOutside, Protocol::Udp), outside),
            (at(Face::Node, Protocol::Sctp), node.clone()),
            (at(Face::NodeOutside, Protocol::Tcp), node),
        ];
        Rules { frontends: frontends.into(), local: local.iter().map(|n| *to(*n).ip()).collect() }
    };
    vec![
        ("wide", rules(spread(&[1, 2, 3]), spread(&[1]), spread(&[1, 2]), &[1, 2])),
        ("one replaced", rules(spread(&[1, 9, 3]), spread(&[2]), spread(&[1, 4]), &[2, 3])),
        ("fewer", rules(spread(&[9]), Load::Drop, Load::Reject, &[])),
        ("affinity", rules(special(&[1, 2], Some(10_800), &[]), special(&[1], Some(5), &[]), Load::Drop, &[1])),
        (
            "sources",
            rules(
                special(&[1, 2, 3], None, &["10.0.0.0/8", "192.0.2.1/32"]),
                special(&[3], None, &["0.0.0.0/0"]),
                special(&[4, 5], Some(5), &["198.51.100.0/24"]),
                &[4],
            ),
        ),
        ("nobody", rules(Load::Reject, Load::Reject, Load::Drop, &[])),
    ]
}

#[test]
fn changes_as_values_lead_where_a_whole_table_as_text_leads() {
    let (changed, replaced) = (Host::new("changed"), Host::new("replaced"));
    let skeleton = || Skeleton {
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        cluster_dns: DNS.parse().unwrap(),
    };
    let mut ruleset = Ruleset::default();
    let whole = |host: &Host, ruleset: &Ruleset| {
        let script = skeleton::replace(&skeleton(), ruleset);
        host.on(async move { nft::apply_text(&script).await }).unwrap();
    };
    whole(&changed, &ruleset);
    let number = changed.netns.exec("nft", "-j list tables");
    let key = || Key::new("default", "web");
    let mut as_text = Vec::new();
    let steps = steps().into_iter().map(|(what, rules)| (what, Some(rules))).chain([("gone", None)]);
    for (what, rules) in steps {
        let batch: Batch = ruleset.apply([(key(), rules)]).batch;
        if json::encode(&batch).is_none() {
            as_text.push(what);
        }
        changed.on(async move { nft::apply(&batch).await }).unwrap_or_else(|e| panic!("{what}: {e}"));
        whole(&replaced, &ruleset);
        assert_eq!(table(&changed), table(&replaced), "{what}");
    }
    assert_eq!(as_text, ["wide"], "only what declares a map is text");
    assert_eq!(changed.netns.exec("nft", "-j list tables"), number);

    // What nft has to say of a refusal reaches the log.
    let batch = ruleset.apply([(key(), Some(self::steps().remove(2).1))]).batch;
    changed.netns.exec("nft", "delete table ip minik8s");
    let error = changed.on(async move { nft::apply(&batch).await }).unwrap_err().to_string();
    assert!(error.contains("No such file or directory"), "{error}");

    changed.on(async { nft::apply_typed(&json::delete_table()).await }).unwrap();
    assert_eq!(changed.netns.exec("nft", "list ruleset"), (true, String::new()));
}

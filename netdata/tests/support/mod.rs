//! Hosts and pods made of network namespaces, and a cluster's API made of a map.

#![expect(clippy::disallowed_methods, reason = "tests wait with a deadline")]

pub mod api;

use std::{
    fs::File,
    future::Future,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A call that is to fail by silence is given up after this.
pub const SILENCE: Duration = Duration::from_millis(800);

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A network namespace that goes when this value does.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(what: &str) -> Netns {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces, for which they must be root");
        let name = format!("mk8st-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let netns = Netns { name };
        netns.ip("link set lo up");
        netns
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    /// `ip` with these words, in this namespace.
    pub fn ip(&self, words: &str) -> String {
        let words: Vec<&str> = ["-n", &self.name].into_iter().chain(words.split_whitespace()).collect();
        run("ip", &words)
    }

    /// A program in this namespace: whether it ended well, and what it wrote.
    pub fn exec(&self, program: &str, words: &str) -> (bool, String) {
        let net = format!("--net={}", self.path().display());
        let output = Command::new("nsenter").arg(net).arg(program).args(words.split_whitespace()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs a function on a thread that is in this namespace.
    pub fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let path = self.path();
        thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            f()
        })
    }

    /// A server that tells each caller its own name and the caller's address, by TCP and by UDP.
    pub fn serve(&self, name: &str, port: u16) {
        let (name, (ready, wait)) = (name.to_owned(), mpsc::channel());
        self.inside(move || {
            let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
            ready.send(()).unwrap();
            let own = name.clone();
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{own} {}", from.ip()).as_bytes(), from);
                }
            });
            while let Ok((mut stream, from)) = tcp.accept() {
                let _ = stream.write_all(format!("{name} {}", from.ip()).as_bytes());
            }
        });
        wait.recv_timeout(PATIENCE).unwrap();
    }

    /// What a server of the kind above answers: its name and the address it saw.
    pub fn call(&self, to: impl Into<SocketAddr>) -> Result<(String, String), std::io::ErrorKind> {
        let to = to.into();
        let call = move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, SILENCE)?;
            stream.set_read_timeout(Some(SILENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = self.inside(call).join().unwrap().map_err(|e| e.kind())?;
        let (name, from) = text.split_once(' ').unwrap();
        Ok((name.to_owned(), from.to_owned()))
    }

    /// Calls until each of these has answered, and returns what each saw.
    pub fn call_all(&self, to: impl Into<SocketAddr>, names: &[&str]) -> Vec<String> {
        let to = to.into();
        names
            .iter()
            .map(|name| {
                eventually(&format!("{name} answers {} at {to}", self.name), || match self.call(to) {
                    Ok((who, from)) if who == *name => Ok(from),
                    other => Err(format!("{other:?}")),
                })
            })
            .collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A host: a namespace, and a runtime all of whose threads are in it.
pub struct Host {
    pub netns: Netns,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Host {
    pub fn new(name: &str) -> Host {
        let netns = Netns::new(name);
        let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let runtime = netns.inside(build).join().unwrap();
        Host { netns, runtime: Some(runtime) }
    }

    /// Runs a future on this host.
    pub fn on<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        self.runtime.as_ref().unwrap().spawn(async move {
            let _ = send.send(future.await);
        });
        receive.recv_timeout(PATIENCE * 2).expect("a task on a host took too long or panicked")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A wire between two namespaces: interface names and, on the left, the bridge to put it into.
pub fn wire(left: &Netns, left_name: &str, right: &Netns, right_name: &str) {
    left.ip(&format!("link add {left_name} type veth peer name {right_name} netns {}", right.name));
    left.ip(&format!("link set {left_name} up"));
    right.ip(&format!("link set {right_name} up"));
}

pub fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {words:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Tries until it works; the last failure is told when time is up.
pub fn eventually<T>(what: &str, mut f: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match f() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}; last: {last}"),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

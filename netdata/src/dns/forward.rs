//! Asks the host's own name servers.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A server that is silent for so long is passed over. Resolvers in pods wait five seconds by default, so that two
/// of ours are asked before they ask again.
const SERVER_TIME: Duration = Duration::from_secs(2);

/// As many servers as the C library's resolver uses.
const SERVERS: usize = 3;

/// The largest message of UDP that is worth receiving; what is larger comes by TCP.
const UDP_ROOM: usize = 4096;

/// Questions on their way at once. A flood of them is refused rather than kept.
const CONCURRENT: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// The way out for names that are not the cluster's.
#[derive(Debug)]
pub struct Forward {
    /// Our own address: to ask it would be to ask ourselves.
    own: Ipv4Addr,
    permits: Semaphore,
}

impl Forward {
    pub fn new(own: Ipv4Addr) -> Forward {
        Forward { own, permits: Semaphore::new(CONCURRENT) }
    }

    /// The first answer that any of the servers gives; none when there is none in time.
    pub async fn ask(&self, question: &[u8], transport: Transport) -> Option<Message> {
        let _permit = self.permits.try_acquire().ok()?;
        // Read each time: it is one small file, and DHCP changes it whenever it likes.
        let text = tokio::fs::read_to_string(RESOLV_CONF).await.ok()?;
        for server in servers(&text, self.own) {
            let exchange = async {
                match transport {
                    Transport::Udp => by_udp(server, question).await,
                    Transport::Tcp => by_tcp(server, question).await,
                }
            };
            if let Ok(Some(answer)) = timeout(SERVER_TIME, exchange).await {
                return Some(answer);
            }
        }
        None
    }
}

fn servers(resolv_conf: &str, own: Ipv4Addr) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let ips = lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok());
    ips.filter(|ip| *ip != IpAddr::V4(own)).map(|ip| SocketAddr::new(ip, 53)).take(SERVERS).collect()
}

/// The question under an id that a forger cannot know, and that id.
#[expect(clippy::disallowed_methods, reason = "the shell is where chance comes in")]
fn renumbered(question: &[u8]) -> Option<(Vec<u8>, u16)> {
    let random = RandomState::new().hash_one(question.len());
    let id = u16::try_from(random & 0xffff).ok()?;
    let mut bytes = question.to_vec();
    bytes.get_mut(..2)?.copy_from_slice(&id.to_be_bytes());
    Some((bytes, id))
}

fn accept(bytes: &[u8], id: u16) -> Option<Message> {
    Message::from_vec(bytes).ok().filter(|answer| answer.metadata.id == id)
}

async fn by_udp(server: SocketAddr, question: &[u8]) -> Option<Message> {
    let (question, id) = renumbered(question)?;
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0".parse().ok()? } else { "[::]:0".parse().ok()? };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&question).await.ok()?;
    let mut buffer = vec![0; UDP_ROOM];
    loop {
        let length = socket.recv(&mut buffer).await.ok()?;
        if let Some(answer) = accept(&buffer[..length], id) {
            return Some(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> Option<Message> {
    let (question, id) = renumbered(question)?;
    let mut stream = TcpStream::connect(server).await.ok()?;
    let mut framed = u16::try_from(question.len()).ok()?.to_be_bytes().to_vec();
    framed.extend_from_slice(&question);
    stream.write_all(&framed).await.ok()?;
    let length = stream.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.ok()?;
    accept(&answer, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_of_the_host_but_never_ourselves() {
        let own = Ipv4Addr::new(10, 96, 0, 10);
        let text = "# a\nsearch x\nnameserver 10.96.0.10\n nameserver 9.9.9.9 # b\nnameserver ::1\nnameserver nonsense\n\
                    nameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let expected: Vec<SocketAddr> =
            ["9.9.9.9:53", "[::1]:53", "1.1.1.1:53"].iter().map(|s| s.parse().unwrap()).collect();
        assert_eq!(servers(text, own), expected);
        assert_eq!(servers("", own), []);
    }

    #[test]
    fn a_question_is_asked_under_an_id_of_our_own() {
        let (bytes, id) = renumbered(&[1, 2, 3, 4]).unwrap();
        assert_eq!((&bytes[..2], &bytes[2..]), (&id.to_be_bytes()[..], &[3, 4][..]));
        assert_eq!(renumbered(&[1]), None);
        assert_eq!(accept(&[0, 1], 1), None);
    }
}

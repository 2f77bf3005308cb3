//! The listener on the cluster's DNS address.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};
use hickory_server::{
    Server as Hickory,
    net::{runtime::Time, xfer::Protocol},
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    time::{sleep, timeout},
};

use super::{
    answer::{Answer, Zone},
    forward::{Forward, Transport},
};
use crate::{
    error::{Error, Result},
    index::Index,
};

const PORT: u16 = 53;

/// How long a TCP connection may stand idle.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Answers of one TCP connection that wait to be sent.
const TCP_ANSWERS: usize = 32;

/// The largest answer by UDP, whatever the asker would take: beyond this, fragments are lost on too many ways.
const UDP_ANSWER: u16 = 1232;

/// The index as its writer and its readers share it. None until the first lists are in.
pub type Shared = Arc<RwLock<Option<Index>>>;

/// Running cluster DNS. Dropping it closes the listeners.
pub struct Server {
    server: Hickory<Handler>,
}

/// An address in use is tried for a second in all.
const BIND_ATTEMPTS: usize = 50;
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// Listeners close at once when they are told to; a stop does not wait longer.
const STOP_TIME: Duration = Duration::from_secs(1);

impl Server {
    /// Listens on an address that this host has.
    pub async fn start(address: Ipv4Addr, zone: Zone, index: Shared) -> Result<Server> {
        let at = SocketAddr::from((address, PORT));
        let refused = |protocol| move |source| Error::DnsListen { address, protocol, source: Arc::new(source) };
        let udp = patiently(|| UdpSocket::bind(at)).await.map_err(refused("UDP"))?;
        let tcp = patiently(|| TcpListener::bind(at)).await.map_err(refused("TCP"))?;
        let mut server = Hickory::new(Handler { zone, index, forward: Forward::new(address) });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
        Ok(Server { server })
    }

    /// Ends it; afterwards the address is free for the next one.
    pub async fn stop(mut self) {
        if let Ok(Err(error)) = timeout(STOP_TIME, self.server.shutdown_gracefully()).await {
            tracing::debug!(%error, "cluster DNS ended with an error");
        }
    }
}

/// Tries again while the address is in use: by a former agent that is just ending, or by a process that one of ours
/// is just starting, which has our sockets until it runs its program.
async fn patiently<T, F>(bind: impl Fn() -> F) -> std::io::Result<T>
where
    F: Future<Output = std::io::Result<T>>,
{
    for _ in 1..BIND_ATTEMPTS {
        match bind().await {
            Err(error) if error.kind() == ErrorKind::AddrInUse => sleep(BIND_PAUSE).await,
            result => return result,
        }
    }
    bind().await
}

struct Handler {
    zone: Zone,
    /// None until the first lists are in: nobody can say yet that a name is not.
    index: Shared,
    forward: Forward,
}

/// An answer before it is encoded.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn failure(code: ResponseCode) -> Reply {
        Reply {
            code,
            authoritative: false,
            truncated: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    fn relayed(message: Message) -> Reply {
        Reply {
            code: message.metadata.response_code,
            authoritative: false,
            truncated: message.metadata.truncation,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        }
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut out: R) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.truncation = reply.truncated;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(512, UDP_ANSWER));
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authorities, &[], &reply.additionals);
        match out.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "a DNS answer could not be sent");
                ResponseInfo::from(hickory_proto::op::Header { metadata, counts: Default::default() })
            }
        }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query || request.metadata.message_type != MessageType::Query {
            return Reply::failure(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::failure(ResponseCode::FormErr) };
        let query = info.query.original();
        let transport = if info.protocol == Protocol::Udp { Transport::Udp } else { Transport::Tcp };
        if query.query_class() != DNSClass::IN {
            return self.relay(request.as_slice(), transport).await;
        }
        match self.answer(query.name(), query.query_type()) {
            Answer::Elsewhere => self.relay(request.as_slice(), transport).await,
            Answer::Alias { record, target } => self.follow(*record, target, query, transport).await,
            Answer::Records { answers, additionals } => self.found(answers, additionals),
            Answer::NoSuchName => Reply { code: ResponseCode::NXDomain, ..self.found(Vec::new(), Vec::new()) },
            Answer::NotYet => Reply::failure(ResponseCode::ServFail),
        }
    }

    fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        self.zone.answer(index.as_ref(), name, kind)
    }

    fn found(&self, answers: Vec<Record>, additionals: Vec<Record>) -> Reply {
        let authorities = if answers.is_empty() { self.zone.authority().into_iter().collect() } else { Vec::new() };
        let code = ResponseCode::NoError;
        Reply { code, authoritative: true, truncated: false, answers, authorities, additionals }
    }

    async fn relay(&self, question: &[u8], transport: Transport) -> Reply {
        match self.forward.ask(question, transport).await {
            Some(message) => Reply::relayed(message),
            None => Reply::failure(ResponseCode::ServFail),
        }
    }

    /// The alias and what it stands for: not every resolver asks again for an alias that comes alone.
    async fn follow(&self, record: Record, target: Name, query: &Query, transport: Transport) -> Reply {
        let mut reply = match self.answer(&target, query.query_type()) {
            Answer::Records { answers, .. } => self.found(answers, Vec::new()),
            // One alias of ours to another: followed no further, so that two cannot chase each other for ever.
            Answer::Alias { record, .. } => self.found(vec![*record], Vec::new()),
            Answer::NoSuchName => Reply { code: ResponseCode::NXDomain, ..self.found(Vec::new(), Vec::new()) },
            Answer::NotYet => Reply::failure(ResponseCode::ServFail),
            Answer::Elsewhere => {
                let mut question = Message::query();
                question.metadata.recursion_desired = true;
                question.add_query(Query::query(target, query.query_type()));
                match question.to_vec() {
                    Ok(bytes) => self.relay(&bytes, transport).await,
                    Err(_) => Reply::failure(ResponseCode::ServFail),
                }
            }
        };
        reply.answers.insert(0, record);
        reply
    }
}

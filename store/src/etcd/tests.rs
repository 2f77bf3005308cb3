//! What `etcdctl` does not do, over connections made here: `e2e/etcd/etcdctl.sh` compares with etcd what it does.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    grpc::frame,
    messages::{
        Empty, HeaderOnly,
        kv::{
            CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
            RangeResponse, RequestOp, TxnRequest, TxnResponse, request_op,
        },
        lease::{LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse},
        maintenance::{HealthCheckRequest, HealthCheckResponse},
        watch::{WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request},
    },
    status::Status,
    *,
};
use crate::Config;

/// A store of its own with a client of it.
struct Client {
    requests: SendRequest<Bytes>,
    _stop: oneshot::Sender<()>,
}

/// How a call ended: gRPC's code and message.
type Refused = (u16, String);

impl Client {
    async fn new() -> Client {
        let store = Store::in_memory(Config::new("")).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(serve((store, Arc::new(Alone), None), listener, || None, async { drop(stopped.await) }));
        let stream = TcpStream::connect(address).await.unwrap();
        // One stream that is not read must not be in the way of the others.
        let (mut builder, stream_window) = (h2::client::Builder::new(), 1 << 20);
        builder.initial_window_size(stream_window).initial_connection_window_size(64 * stream_window);
        let (requests, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Client { requests, _stop: stop }
    }

    async fn begin(&self, path: &str) -> (SendStream<Bytes>, h2::client::ResponseFuture) {
        let mut requests = self.requests.clone().ready().await.unwrap();
        let request = Request::post(format!("http://store{path}")).body(()).unwrap();
        let (response, stream) = requests.send_request(request, false).unwrap();
        (stream, response)
    }

    async fn raw(&self, path: &str, body: Bytes) -> Result<Bytes, Refused> {
        let (mut stream, response) = self.begin(path).await;
        stream.send_data(body, true).unwrap();
        let response = response.await.unwrap();
        if let Some(refused) = refused(response.headers()) {
            return Err(refused);
        }
        let mut body = response.into_body();
        let mut all = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            all.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.unwrap().expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
        Ok(all.freeze().slice(5..))
    }

    async fn call<A: Message + Default>(&self, path: &str, request: &impl Message) -> Result<A, Refused> {
        self.raw(path, frame(request)).await.map(|answer| A::decode(answer).unwrap())
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let answer: PutResponse = self.call("/etcdserverpb.KV/Put", &request).await.unwrap();
        answer.header.unwrap().revision
    }

    async fn stream(&self, path: &str) -> Streaming {
        let (stream, response) = self.begin(path).await;
        // The server answers before it is asked anything.
        let body = response.await.unwrap().into_body();
        Streaming { stream, body, buffer: BytesMut::new() }
    }
}

fn refused(headers: &HeaderMap) -> Option<Refused> {
    let code = headers.get("grpc-status")?.to_str().unwrap().parse().unwrap();
    Some((code, headers["grpc-message"].to_str().unwrap().to_owned()))
}

struct Streaming {
    stream: SendStream<Bytes>,
    body: RecvStream,
    buffer: BytesMut,
}

impl Streaming {
    fn send(&mut self, request: &impl Message) {
        self.stream.send_data(frame(request), false).unwrap();
    }

    async fn next<A: Message + Default>(&mut self) -> A {
        let next = async {
            loop {
                if let Some((length, _)) = self.buffer.get(1..).and_then(|rest| rest.split_first_chunk::<4>()) {
                    let whole = 5 + u32::from_be_bytes(*length) as usize;
                    if self.buffer.len() >= whole {
                        return A::decode(self.buffer.split_to(whole).freeze().slice(5..)).unwrap();
                    }
                }
                let data = self.body.data().await.expect("more").unwrap();
                self.body.flow_control().release_capacity(data.len()).unwrap();
                self.buffer.extend_from_slice(&data);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next).await.expect("a response in time")
    }

    async fn watch(&mut self) -> WatchResponse {
        self.next().await
    }

    fn create(&mut self, create: WatchCreateRequest) {
        self.send(&WatchRequest { request: Some(watch_request::Request::Create(create)) });
    }
}

fn prefix(start: &'static str, end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: start.into(), range_end: end.into(), ..Default::default() }
}

/// What a response tells: the watch, the revision, and each event's key.
fn told(response: &WatchResponse) -> (i64, i64, Vec<&[u8]>) {
    let keys = response.events.iter().map(|event| &event.kv.as_ref().unwrap().key[..]).collect();
    (response.watch_id, response.header.as_ref().unwrap().revision, keys)
}

#[tokio::test]
async fn requests_that_are_none() {
    let client = Client::new().await;
    let put = PutRequest { key: "k".into(), ..Default::default() };
    let mut compressed = BytesMut::from(&frame(&put)[..]);
    compressed[0] = 1;
    let mut huge = BytesMut::new();
    huge.put_u8(0);
    huge.put_u32(3 << 20);
    for (path, body, code, message) in [
        ("/etcdserverpb.KV/Nothing", frame(&put), 12, "unknown method Nothing for service etcdserverpb.KV"),
        ("/", frame(&put), 12, "unknown service "),
        ("/etcdserverpb.KV/Put", compressed.freeze(), 12, &Status::COMPRESSED.message),
        ("/etcdserverpb.KV/Put", huge.freeze(), 8, "grpc: received message larger than max (3145728 vs. 2097152)"),
        ("/etcdserverpb.KV/Put", frame(&put).slice(..6), 13, &Status::CUT_SHORT.message),
        ("/etcdserverpb.KV/Put", Bytes::new(), 13, &Status::CUT_SHORT.message),
        ("/etcdserverpb.KV/Put", frame(&Empty {}), 3, "etcdserver: key is not provided"),
        (
            "/etcdserverpb.KV/Txn",
            frame(&TxnRequest { success: vec![RequestOp::default()], ..Default::default() }),
            3,
            "etcdserver: key not found",
        ),
        (
            "/etcdserverpb.KV/Range",
            frame(&RangeRequest { key: "k".into(), sort_order: 9, ..Default::default() }),
            3,
            "etcdserver: invalid sort option",
        ),
        ("/etcdserverpb.Auth/AuthEnable", frame(&Empty {}), 9, "etcdserver: root user does not exist"),
    ] {
        assert_eq!(client.raw(path, body).await, Err((code, message.to_owned())), "{path}");
    }
    assert_eq!(client.put("k", "v").await, 2, "and the connection is as good as before");
}

#[tokio::test]
async fn health() {
    let client = Client::new().await;
    let answer = client.call("/grpc.health.v1.Health/Check", &HealthCheckRequest::default()).await;
    assert_eq!(answer, Ok(HealthCheckResponse { status: 1 }));
}

#[tokio::test]
async fn transactions_in_transactions() {
    let client = Client::new().await;
    client.put("a", "1").await;
    let op = |request| RequestOp { request: Some(request) };
    let put = |key: &'static str| {
        op(request_op::Request::Put(PutRequest {
            key: key.into(),
            value: "2".into(),
            prev_kv: true,
            ..Default::default()
        }))
    };
    let older = RangeRequest { key: "a".into(), range_end: b"\0"[..].into(), revision: 2, ..Default::default() };
    let inner = TxnRequest { success: vec![put("b"), op(request_op::Request::Range(older))], ..Default::default() };
    let deep = TxnRequest { success: vec![put("a"), op(request_op::Request::Txn(inner))], ..Default::default() };
    let answer: TxnResponse = client.call("/etcdserverpb.KV/Txn", &deep).await.unwrap();
    assert_eq!(answer.header.as_ref().map(|header| header.revision), Some(3));
    use super::messages::kv::response_op::Response;
    let [put, inner] = &answer.responses[..] else { panic!("{answer:?}") };
    let Some(Response::Put(put)) = &put.response else { panic!("{answer:?}") };
    assert_eq!(put.prev_kv.as_ref().map(|kv| &kv.value[..]), Some(&b"1"[..]));
    let Some(Response::Txn(inner)) = &inner.response else { panic!("{answer:?}") };
    let Some(Response::Range(older)) = &inner.responses[1].response else { panic!("{answer:?}") };
    assert_eq!(older.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..])).collect::<Vec<_>>(), [(&b"a"[..], &b"1"[..])]);

    let future = RangeRequest { key: "a".into(), revision: 99, ..Default::default() };
    let refused =
        TxnRequest { success: vec![self::put_op("x"), op(request_op::Request::Range(future))], ..Default::default() };
    let answer: Result<TxnResponse, _> = client.call("/etcdserverpb.KV/Txn", &refused).await;
    assert_eq!(answer, Err((11, Status::FUTURE.message.into_owned())));
    let x = RangeRequest { key: "x".into(), ..Default::default() };
    let answer: RangeResponse = client.call("/etcdserverpb.KV/Range", &x).await.unwrap();
    assert_eq!(answer.count, 0, "nothing of it was carried out");
}

fn put_op(key: &'static str) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Put(PutRequest { key: key.into(), ..Default::default() })) }
}

#[tokio::test]
async fn watches_share_a_stream() {
    let client = Client::new().await;
    let mut stream = client.stream("/etcdserverpb.Watch/Watch").await;
    // (what is asked for, the id it gets, why it is refused)
    for (create, id, reason) in [
        (prefix("a/", "a0"), 0, ""),
        (WatchCreateRequest { watch_id: 7, ..prefix("b/", "b0") }, 7, ""),
        (
            WatchCreateRequest { watch_id: 7, ..prefix("c/", "c0") },
            -1,
            "mvcc: duplicate watch ID provided on the WatchStream",
        ),
        (prefix("b", "a"), -1, "mvcc: watcher range is empty"),
        (WatchCreateRequest { start_revision: -1, ..prefix("b", "c") }, -1, COMPACTED),
        (WatchCreateRequest { filters: vec![0], prev_kv: true, ..prefix("a/", "a0") }, 1, ""),
    ] {
        stream.create(create);
        let created = stream.watch().await;
        let found = (created.watch_id, created.created, created.canceled, &created.cancel_reason[..]);
        assert_eq!(found, (id, true, id == -1, reason));
    }
    assert_eq!(client.put("a/1", "v").await, 2);
    assert_eq!(told(&stream.watch().await), (0, 2, vec![&b"a/1"[..]]));
    assert_eq!(client.put("b/1", "v").await, 3);
    assert_eq!(told(&stream.watch().await), (7, 3, vec![&b"b/1"[..]]));
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
    let _: DeleteRangeResponse = client.call("/etcdserverpb.KV/DeleteRange", &delete).await.unwrap();
    let mut both = [stream.watch().await, stream.watch().await];
    both.sort_by_key(|response| response.watch_id);
    assert_eq!(told(&both[0]), (0, 4, vec![&b"a/1"[..]]));
    assert_eq!(both[0].events[0].prev_kv, None);
    assert_eq!(told(&both[1]), (1, 4, vec![&b"a/1"[..]]), "which has left the put out");
    assert_eq!(both[1].events[0].prev_kv.as_ref().map(|kv| kv.mod_revision), Some(2));
    let last = both[1].events[0].kv.as_ref().unwrap();
    assert_eq!((both[1].events[0].kind, last.create_revision, &last.value[..]), (1, 0, &b""[..]));

    client.put("x", "v").await;
    stream.send(&WatchRequest { request: Some(watch_request::Request::Progress(Empty {})) });
    assert_eq!(told(&stream.watch().await), (-1, 5, vec![]), "all of them have come this far");
    let cancel = WatchCancelRequest { watch_id: 7 };
    stream.send(&WatchRequest { request: Some(watch_request::Request::Cancel(cancel)) });
    let canceled = stream.watch().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.compact_revision), (7, true, 0));
    client.put("b/2", "v").await;
    client.put("a/2", "v").await;
    assert_eq!(told(&stream.watch().await), (0, 7, vec![&b"a/2"[..]]), "a canceled one is silent");
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

#[tokio::test]
async fn watches_of_the_past() {
    let client = Client::new().await;
    for n in 2..=9 {
        assert_eq!(client.put(if n == 5 { "other" } else { "a" }, "v").await, n);
    }
    let compact = CompactionRequest { revision: 4, physical: true };
    let _: HeaderOnly = client.call("/etcdserverpb.KV/Compact", &compact).await.unwrap();
    let mut stream = client.stream("/etcdserverpb.Watch/Watch").await;
    for (from, compacted) in [(3, true), (4, false), (6, false), (9, false)] {
        stream.create(WatchCreateRequest { start_revision: from, ..prefix("a", "") });
        assert!(stream.watch().await.created);
        let mut found = Vec::new();
        while found.last() != Some(&9) {
            let response = stream.watch().await;
            if compacted {
                assert_eq!((response.canceled, response.compact_revision), (true, 4));
                break;
            }
            found.extend(response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
        }
        let expected: Vec<i64> = (from..=9).filter(|&n| n != 5 && !compacted).collect();
        assert_eq!(found, expected, "from {from}");
    }
}

#[tokio::test]
async fn large_revisions_come_in_fragments() {
    let client = Client::new().await;
    let mut stream = client.stream("/etcdserverpb.Watch/Watch").await;
    stream.create(WatchCreateRequest { fragment: true, prev_kv: true, ..prefix("a", "b") });
    assert!(stream.watch().await.created);
    let value = "v".repeat(100_000);
    for round in 0..2 {
        let op = |n: usize| {
            let key = format!("a{n:02}").into();
            let put = PutRequest { key, value: value.clone().into(), ..Default::default() };
            RequestOp { request: Some(request_op::Request::Put(put)) }
        };
        let txn = TxnRequest { success: (0..12).map(op).collect(), ..Default::default() };
        let _: TxnResponse = client.call("/etcdserverpb.KV/Txn", &txn).await.unwrap();
        let mut counts = Vec::new();
        loop {
            let response = stream.watch().await;
            assert!(response.encoded_len() < 2 << 20);
            counts.push(response.events.len());
            if !response.fragment {
                break;
            }
        }
        // The second time each event has what was there before, too.
        assert_eq!((counts.iter().sum::<usize>(), counts.len()), (12, 1 + round), "{counts:?}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_watches_only() {
    let client = Client::new().await;
    let mut stream = client.stream("/etcdserverpb.Watch/Watch").await;
    stream.create(prefix("a", "b"));
    assert!(stream.watch().await.created);
    let value = "v".repeat(100_000);
    for _ in 0..200 {
        client.put("a", &value).await;
    }
    let mut found = Vec::new();
    while found.last() != Some(&201) {
        let response = stream.watch().await;
        found.extend(response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision));
    }
    assert_eq!(found, (2..=201).collect::<Vec<i64>>());
}

#[tokio::test]
async fn leases_are_kept_alive_on_a_stream() {
    let client = Client::new().await;
    let grant = LeaseGrantRequest { ttl: 60, id: 77 };
    let granted: LeaseGrantResponse = client.call("/etcdserverpb.Lease/LeaseGrant", &grant).await.unwrap();
    assert_eq!((granted.id, granted.ttl), (77, 60));
    let again: Result<LeaseGrantResponse, _> = client.call("/etcdserverpb.Lease/LeaseGrant", &grant).await;
    assert_eq!(again, Err((9, "etcdserver: lease already exists".to_owned())));
    let mut stream = client.stream("/etcdserverpb.Lease/LeaseKeepAlive").await;
    for (id, ttl) in [(77, 60), (78, 0), (77, 60)] {
        stream.send(&LeaseKeepAliveRequest { id });
        let answer: LeaseKeepAliveResponse = stream.next().await;
        assert_eq!((answer.id, answer.ttl), (id, ttl));
    }
}

/// A server with a certificate, for clients with one of the same authority.
mod tls {
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer},
        server::WebPkiClientVerifier,
    };
    use tokio_rustls::TlsConnector;

    use super::*;

    type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

    fn authority() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().clone(), Issuer::new(params, key))
    }

    fn identity(issuer: &Issuer<'static, KeyPair>, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    #[tokio::test]
    async fn only_clients_with_a_certificate_are_let_in() {
        let (certificate, issuer) = authority();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let (chain, key) = identity(&issuer, "localhost");
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        let store = Store::in_memory(Config::new("")).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admits = |der: &[u8]| der.windows(5).any(|part| part == b"admin");
        let tls = Tls { config: Arc::new(server), admits };
        let server = serve((store, Arc::new(Alone), None), listener, move || Some(tls.clone()), std::future::pending());
        let serving = tokio::spawn(server);
        for (has, known, name) in
            [(true, true, "admin"), (true, true, "node"), (true, false, "admin"), (false, false, "")]
        {
            let config = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone());
            let issuer = if known { &issuer } else { &authority().1 };
            let mut config = match identity(issuer, name) {
                (chain, key) if has => config.with_client_auth_cert(chain, key).unwrap(),
                _ => config.with_no_client_auth(),
            };
            config.alpn_protocols = vec![b"h2".to_vec()];
            let stream = TcpStream::connect(address).await.unwrap();
            let host = "localhost".try_into().unwrap();
            let answered = async {
                let stream = TlsConnector::from(Arc::new(config)).connect(host, stream).await.ok()?;
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                let (requests, connection) = h2::client::handshake(stream).await.ok()?;
                tokio::spawn(connection);
                let mut requests = requests.ready().await.ok()?;
                let request = Request::post("https://localhost/grpc.health.v1.Health/Check").body(()).unwrap();
                let (response, mut stream) = requests.send_request(request, false).ok()?;
                stream.send_data(frame(&HealthCheckRequest::default()), true).ok()?;
                response.await.ok()
            };
            let admitted = has && known && name == "admin";
            assert_eq!(
                answered.await.is_some(),
                admitted,
                "a certificate: {has}, of the authority: {known}, of {name:?}"
            );
        }
        serving.abort();
    }
}

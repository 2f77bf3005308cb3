//! What only a real connection shows: certificates, joins, and tunnels to nodes.

use super::*;

/// A client over the network, with an optional client certificate.
async fn https(cluster: &Cluster, leaf: Option<&pki::Leaf>) -> hyper::client::conn::http1::SendRequest<Body> {
    https_as(cluster, leaf, &[]).await
}

async fn https_as(
    cluster: &Cluster,
    leaf: Option<&pki::Leaf>,
    protocols: &[&[u8]],
) -> hyper::client::conn::http1::SendRequest<Body> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.server.app.pki.ca_pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match leaf {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = tokio::net::TcpStream::connect(cluster.server.address()).await.unwrap();
    let name = "cluster.example".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

#[tokio::test]
async fn over_tls_the_certificate_says_who_asks() {
    let cluster = Cluster::start().await;
    let mut admin = https(&cluster, Some(&cluster.server.app.pki.node_client)).await;
    let get = |uri: &str| Request::get(uri).header("host", "cluster.example").body(Body::empty()).unwrap();
    let pods = read(admin.send_request(get(PODS)).await.unwrap().map(Body::new)).await;
    assert_eq!((pods.code, pods.body["kind"].as_str()), (200, Some("PodList")));

    let mut nobody = https(&cluster, None).await;
    for (uri, code) in
        [("/readyz", 200), ("/version", 200), ("/cacerts", 200), (PODS, 401), ("/nonsense", 401), ("/api", 401)]
    {
        let answer = read(nobody.send_request(get(uri)).await.unwrap().map(Body::new)).await;
        assert_eq!(answer.code, code, "{uri}");
    }
    let mut request = get(PODS);
    request.headers_mut().insert("authorization", "Bearer nonsense".parse().unwrap());
    assert_eq!(nobody.send_request(request).await.unwrap().status(), 401);
}

#[tokio::test]
async fn the_wire_is_for_messages_of_servers_only() {
    let cluster = Cluster::start().await;
    let get = |uri: &str| Request::get(uri).header("host", "cluster.example").body(Body::empty()).unwrap();
    let post = || Request::post(paths::RAFT).header("host", "cluster.example").body(Body::empty()).unwrap();
    let admin = Some(&cluster.server.app.pki.node_client);
    let protocols: [&[u8]; 2] = [peers::PROTOCOL, b"http/1.1"];
    for request in [get(PODS), get("/readyz"), post()] {
        let mut wire = https_as(&cluster, admin, &protocols).await;
        let answer = read(wire.send_request(request).await.unwrap().map(Body::new)).await;
        assert_eq!(answer.code, 400, "{}", answer.body);
    }
    let mut nobody = https_as(&cluster, None, &protocols).await;
    assert!(nobody.send_request(post()).await.is_err(), "whoever is no server is not listened to");
    // Whoever does not know it gets the common one.
    let mut common = https_as(&cluster, admin, &[b"http/1.1"]).await;
    assert_eq!(common.send_request(get(PODS)).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_machine_joins_with_the_token_only() {
    let cluster = Cluster::start().await;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let token = cluster.server.join_token();
    let apply = |token: String, name: &str, csr: &str| {
        let body = json!({"nodeName": name, "nodeIP": "10.0.0.7", "csr": csr}).to_string();
        Request::post("/minik8s/v1/join")
            .header("host", "h")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::from(body))
            .unwrap()
    };
    let mut client = https(&cluster, None).await;
    for (token, name, csr, code) in [
        (format!("{token}x"), "a", csr.as_str(), 401),
        (token.clone(), "Not_A_Name", csr.as_str(), 400),
        (token.clone(), "a", "nonsense", 400),
        (token.clone(), "a", csr.as_str(), 200),
    ] {
        let answer = read(client.send_request(apply(token, name, csr)).await.unwrap().map(Body::new)).await;
        assert_eq!(answer.code, code, "{}", answer.body);
        if code == 200 {
            assert_eq!(
                (answer.body["clusterCIDR"].as_str(), answer.body["clusterDNS"].as_str()),
                (Some("10.244.0.0/16"), Some("10.96.0.10"))
            );
            let leaf = pki::Leaf {
                certificate: answer.body["certificate"].as_str().unwrap().into(),
                key: key.serialize_pem(),
            };
            let mut node = https(&cluster, Some(&leaf)).await;
            let get = |uri: &str| Request::get(uri).header("host", "h").body(Body::empty()).unwrap();
            assert_eq!(node.send_request(get("/api/v1/services")).await.unwrap().status(), 200);
            // The certificate stands in for the token, but only under its own name.
            for (name, code) in [("a", 200), ("b", 403)] {
                let again = apply(String::new(), name, csr);
                let answer = read(node.send_request(again).await.unwrap().map(Body::new)).await;
                assert_eq!((answer.code, answer.body["certificate"].is_string()), (code, code == 200), "{name}");
            }
            let mut admin = https(&cluster, Some(&cluster.server.app.pki.node_client)).await;
            let answer = admin.send_request(apply(String::new(), "a", csr)).await.unwrap();
            assert_eq!(answer.status(), 401, "an administrator is no node");
        }
    }
}

/// A node's server that answers logs with what it was asked, echoes what comes through an upgrade, and redirects the
/// container named `evil`.
async fn fake_node(cluster: &Cluster) -> u16 {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let ip = "127.0.0.1".parse().unwrap();
    let certificate = cluster.server.app.pki.sign_node(&csr, "n", ip, clock::seconds()).unwrap();
    let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            let service = hyper::service::service_fn(|request| async { Ok::<_, Infallible>(node_answer(request)) });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades());
        }
    });
    port
}

fn node_answer(mut request: Request<hyper::body::Incoming>) -> Response<Body> {
    let uri = request.uri().to_string();
    if uri.contains("/evil") {
        return Response::builder().status(302).header("location", "https://127.0.0.1/").body(Body::empty()).unwrap();
    }
    if uri.starts_with("/containerLogs/") {
        return Response::new(Body::from(format!("{uri}\n")));
    }
    let asked = |name: &str| request.headers().get(name).cloned().unwrap_or(http::HeaderValue::from_static(""));
    let (protocol, streams) = (asked("upgrade"), asked("x-stream-protocol-version"));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
        let (mut reader, mut writer) = tokio::io::split(&mut io);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let answer = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", protocol);
    let answer = answer.header("x-stream-protocol-version", streams);
    answer.header("sec-websocket-protocol", "v5.channel.k8s.io").body(Body::empty()).unwrap()
}

#[tokio::test]
async fn logs_and_exec_come_from_the_node() {
    let cluster = Cluster::start().await;
    let port = fake_node(&cluster).await;
    cluster.call("POST", "/api/v1/nodes", json!({"metadata": {"name": "n"}})).await;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    assert_eq!(cluster.patch("/api/v1/nodes/n/status", "merge-patch", status).await.code, 200);
    let mut two = pod("p");
    two["spec"]["containers"] = json!([{"name": "c", "image": "i"}, {"name": "evil", "image": "i"}]);
    cluster.call("POST", PODS, two).await;
    assert_eq!(cluster.get(&format!("{PODS}/p/log?container=c"), "").await.bytes, "", "it has no node yet");
    cluster.call("POST", &format!("{PODS}/p/binding"), json!({"target": {"name": "n"}})).await;

    let log = cluster.get(&format!("{PODS}/p/log?container=c&tailLines=3&pretty=true"), "").await;
    assert_eq!(log.bytes, "/containerLogs/default/p/c?tailLines=3\n");
    assert_eq!(cluster.get(&format!("{PODS}/p/log"), "").await.code, 400, "two containers, none named");
    let evil = cluster.get(&format!("{PODS}/p/log?container=evil"), "").await;
    assert_eq!((evil.code, evil.body["kind"].as_str()), (500, Some("Status")), "redirects are not followed");

    let exec = |container: &str| {
        Request::get(format!("{PODS}/p/exec?container={container}&command=a&command=b%20c&stdin=true"))
            .header("host", "h")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(Body::empty())
            .unwrap()
    };
    let mut client = https(&cluster, Some(&cluster.server.app.pki.node_client)).await;
    let refused = client.send_request(exec("evil")).await.unwrap();
    assert_eq!(refused.status(), 500, "no tunnel without the node's consent");
    let mut client = https(&cluster, Some(&cluster.server.app.pki.node_client)).await;
    let mut response = client.send_request(exec("c")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["sec-websocket-protocol"]),
        (101, &"v5.channel.k8s.io".parse::<http::HeaderValue>().unwrap())
    );
    through_and_back(&mut response).await;

    // What kubectl asks with until 1.29.
    let exec = |upgrade: &str| {
        Request::post(format!("{PODS}/p/exec?container=c&command=a&stdin=true"))
            .header("host", "h")
            .header("connection", "Upgrade")
            .header("upgrade", upgrade)
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
            .body(Body::empty())
            .unwrap()
    };
    let mut client = https(&cluster, Some(&cluster.server.app.pki.node_client)).await;
    assert_eq!(client.send_request(exec("h2c")).await.unwrap().status(), 400, "nobody speaks that");
    let mut client = https(&cluster, Some(&cluster.server.app.pki.node_client)).await;
    let mut response = client.send_request(exec("SPDY/3.1")).await.unwrap();
    let header = |name: &str| response.headers()[name].to_str().unwrap();
    assert_eq!(
        (response.status().as_u16(), header("upgrade"), header("x-stream-protocol-version")),
        (101, "SPDY/3.1", "v4.channel.k8s.io")
    );
    through_and_back(&mut response).await;
}

async fn through_and_back(response: &mut Response<hyper::body::Incoming>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"through and back").await.unwrap();
    let mut back = [0; 16];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"through and back");
}

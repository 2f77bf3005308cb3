//! Renews the node's certificate in the last third of its life, by that very certificate: no token is needed.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use client::{Client, Credentials};
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::sync::watch;

use crate::{
    Error,
    join::{self, Identity},
    pod::error_text,
    server::tls,
};

/// The longest sleep: the wall clock decides, and it goes on while a machine sleeps, and jumps.
const LOOK: Duration = Duration::from_secs(3600);
/// The shortest: after a failure, and where a server gives certificates that are old already.
const RETRY: Duration = Duration::from_secs(60);

/// What shows the certificate, and what a new one is made from.
pub struct Renewal {
    pub client: Client,
    pub credentials: Credentials,
    pub server: watch::Sender<Arc<ServerConfig>>,
    pub identity: Identity,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// Where the identity is kept.
    pub dir: PathBuf,
}

impl Renewal {
    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut pause = wait(join::aging(&self.identity.certificate), Timestamp::now());
        loop {
            tokio::time::sleep(pause).await;
            pause = wait(join::aging(&self.identity.certificate), Timestamp::now());
            if !pause.is_zero() {
                continue;
            }
            match self.renew().await {
                Ok(()) => tracing::info!("the node's certificate has been renewed"),
                Err(error) => tracing::warn!(
                    error = error_text(&error),
                    "the node's certificate could not be renewed; it is tried again, and a restart with --token helps too"
                ),
            }
            pause = RETRY;
        }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let answer = join::renew(&self.client, &self.node_name, self.node_ip).await?;
        // The CA stays the one that the token vouched for.
        let next = Identity { ca: self.identity.ca.clone(), ..answer };
        let config = tls::config(&next.certificate, &next.key, &next.ca).map_err(Error::Tls)?;
        self.credentials.replace(&next.pem()).map_err(Error::Client)?;
        self.server.send_replace(Arc::new(config));
        self.identity = next;
        join::save(&self.dir, &self.identity)
    }
}

/// How long to leave a certificate alone that ages at `aging`; zero when it is to be renewed now. Pure.
fn wait(aging: Option<Timestamp>, now: Timestamp) -> Duration {
    let left = aging.map_or(jiff::SignedDuration::ZERO, |aging| aging.duration_since(now));
    Duration::try_from(left).unwrap_or(Duration::ZERO).min(LOOK)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::{Extension, Router, routing::post};
    use client::{Https, ListParams};
    use hyper_util::{
        rt::{TokioExecutor, TokioIo},
        server::conn::auto::Builder,
        service::TowerToHyperService,
    };
    use k8s_openapi::api::core::v1::Node;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    };
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_certificate_is_left_alone_until_it_ages() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let table = [(None, 0), (Some(99), 0), (Some(100), 0), (Some(130), 30), (Some(100_000), LOOK.as_secs())];
        for (aging, expected) in table {
            assert_eq!(wait(aging.map(at), at(100)), Duration::from_secs(expected), "{aging:?}");
        }
    }

    type Issuer = CertifiedIssuer<'static, KeyPair>;
    /// Each request with the certificate that it was made with.
    type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

    fn leaf(ca: &Issuer, name: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        Identity {
            certificate: params.signed_by(&key, ca).expect("a certificate").pem(),
            key: key.serialize_pem(),
            ca: ca.pem(),
            cluster: serde_json::from_value(cluster()).expect("a cluster"),
        }
    }

    fn cluster() -> Value {
        json!({"clusterCIDR": "10.244.0.0/16", "serviceCIDR": "10.96.0.0/16", "clusterDNS": "10.96.0.10"})
    }

    /// A server that signs what it is asked to, and lists no nodes.
    async fn serve(listener: TcpListener, ca: Arc<Issuer>, seen: Seen) {
        let own = leaf(&ca, "server");
        let config = Arc::new(tls::config(&own.certificate, &own.key, &own.ca).expect("a configuration"));
        let sign = move |body: String| async move {
            let body: Value = serde_json::from_str(&body).expect("JSON");
            let csr = body["csr"].as_str().unwrap_or_default();
            let signed = CertificateSigningRequestParams::from_pem(csr).expect("a request").signed_by(&*ca);
            let mut answer = cluster();
            answer["certificate"] = signed.expect("a certificate").pem().into();
            answer["ca"] = "another CA, which is not believed".into();
            answer.to_string()
        };
        let note = move |Extension(shown): Extension<Vec<u8>>,
                         request: axum::extract::Request,
                         next: axum::middleware::Next| {
            seen.lock().expect("unpoisoned").push((request.uri().path().to_owned(), shown));
            next.run(request)
        };
        let list = || async { json!({"metadata": {"resourceVersion": "1"}, "items": []}).to_string() };
        let router = Router::new()
            .route("/minik8s/v1/join", post(sign))
            .route("/api/v1/nodes", axum::routing::get(list))
            .layer(axum::middleware::from_fn(note));
        while let Ok((stream, _)) = listener.accept().await {
            let router = router.clone();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let certificates = stream.get_ref().1.peer_certificates().expect("a client certificate");
                let shown = certificates[0].to_vec();
                let service = TowerToHyperService::new(router.layer(Extension(shown)));
                let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    #[tokio::test]
    async fn after_a_renewal_every_side_shows_the_new_certificate() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let old = leaf(&ca, "system:node:n1");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Seen::default();
        tokio::spawn(serve(listener, Arc::new(ca), Arc::clone(&seen)));

        let servers = vec![format!("https://{address}")];
        let https = Https { servers, ca: old.ca.clone().into_bytes(), identity: old.pem() };
        let (client, credentials) = Client::https(&https).expect("a client");
        let config = tls::config(&old.certificate, &old.key, &old.ca).expect("a configuration");
        let (server, served) = watch::channel(Arc::new(config));
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path().to_owned();
        let node_ip = IpAddr::from([127, 0, 0, 1]);
        let (node_name, identity) = ("n1".to_owned(), old.clone());
        let mut renewal = Renewal { client: client.clone(), credentials, server, identity, node_name, node_ip, dir };
        assert!(renewal.credentials.replace(b"nonsense").is_err(), "what is no certificate replaces none");
        renewal.renew().await.expect("a renewal");
        let new = renewal.identity.clone();
        assert!(served.has_changed().expect("a sender"), "the node's own server has it too");
        assert_eq!((new.ca.as_str(), new.cluster.clone()), (old.ca.as_str(), old.cluster.clone()));
        client.list::<Node>("", &ListParams::default()).await.expect("a list");
        let der = |identity: &Identity| {
            use rustls::pki_types::{CertificateDer, pem::PemObject};
            CertificateDer::from_pem_slice(identity.certificate.as_bytes()).expect("a certificate").to_vec()
        };
        let expected = [("/minik8s/v1/join".to_owned(), der(&old)), ("/api/v1/nodes".to_owned(), der(&new))];
        assert_eq!(*seen.lock().expect("unpoisoned"), expected);
        assert_ne!(der(&old), der(&new));
        let kept = std::fs::read_to_string(home.path().join("node.crt")).expect("a file");
        assert_eq!(kept, new.certificate);
    }
}

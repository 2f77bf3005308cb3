//! Who may come in: certificates of the cluster's CA, told apart by organization.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Whose certificates speak for the API server.
const MASTERS: &str = "system:masters";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Master,
    Other,
}

/// A certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// Serves with this certificate, and wants one of the same CA from every client. PEM throughout.
pub fn config(certificate: &str, key: &str, ca: &str) -> Result<ServerConfig, TlsError> {
    let wrong = |what: &str, error: &dyn std::fmt::Display| TlsError(format!("{what}: {error}"));
    let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| wrong("a certificate", &e))
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(ca)? {
        roots.add(root).map_err(|e| wrong("the CA certificate", &e))?;
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| wrong("the key", &e))?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|e| wrong("the CA", &e))?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, key)
        .map_err(|e| wrong("the node's certificate", &e))?;
    // WebSocket upgrades are a matter of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What the client's certificate, which has been verified, makes of it.
pub fn caller<S: AsyncRead + AsyncWrite + Unpin>(stream: &TlsStream<S>) -> Caller {
    let (_, session) = stream.get_ref();
    let first = session.peer_certificates().and_then(|all| all.first());
    if first.is_some_and(|certificate| organizations(certificate).iter().any(|o| o == MASTERS)) {
        Caller::Master
    } else {
        Caller::Other
    }
}

fn organizations(certificate: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    parsed.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    #[test]
    fn organizations_are_read_from_the_subject() {
        let mut params = CertificateParams::new(vec!["x".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::OrganizationName, MASTERS);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        assert_eq!(organizations(certificate.der()), [MASTERS]);
        assert_eq!(organizations(b"nonsense"), Vec::<String>::new());
    }

    #[test]
    fn a_configuration_needs_matching_parts() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::new(vec!["ca".to_owned()]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["node".to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
        assert!(config(&leaf.pem(), &key.serialize_pem(), &ca.pem()).is_ok());
        assert!(config(&leaf.pem(), "nonsense", &ca.pem()).is_err());
        assert!(config("", &key.serialize_pem(), &ca.pem()).is_err());
    }
}

//! The cluster's certificate authority and all that it signs, kept under `<data-dir>`.
//!
//! Everything is made at the first start and read back at later ones. Leaf certificates are issued anew when their
//! names change or two thirds of their life is over; a running server loads anew for that. Every file is
//! written beside its place, synced and renamed, so that a power cut leaves the old one or the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::Write,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::{
    Error,
    authenticate::{Identity, MASTERS},
    encryption::KEY_LEN,
    entropy,
    peers::PROTOCOL,
};

/// Under the data directory, what all the servers of a cluster have in common. Nobody else gets any of it.
pub const SHARED: [&str; 6] =
    ["tls/ca.crt", "tls/ca.key", "tls/service-account.key", ENCRYPTION_KEY, "token", SERVER_TOKEN];
pub const SERVER_TOKEN: &str = "server-token";
/// The key that wraps the keys of what is encrypted in the store.
pub const ENCRYPTION_KEY: &str = "tls/encryption.key";

/// The user that servers are towards nodes and each other.
pub const SERVER: &str = "minik8s-apiserver";

const DAY: u64 = 24 * 3600;
const CA_LIFE: Duration = Duration::from_secs(3652 * DAY);
const LEAF_LIFE: Duration = Duration::from_secs(365 * DAY);
/// A leaf is replaced when less than this is left of it: a third of its life.
const RENEW_BEFORE: Duration = Duration::from_secs(122 * DAY);
/// Certificates start in the past, for nodes whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Certificates and keys that say who may do what, for one server process.
pub struct Pki {
    pub ca_pem: String,
    ca_der: CertificateDer<'static>,
    ca: Issuer<'static, KeyPair>,
    server: Leaf,
    /// What this server presents to the nodes' own servers.
    pub node_client: Leaf,
    pub service_accounts: TokenKey,
    pub join_token: JoinToken,
    /// What a further server shows: no agent's token may do that, as a server is given every key.
    pub server_token: JoinToken,
    pub kubeconfig: PathBuf,
}

/// What the files depend on besides the directory itself.
pub struct Subject<'a> {
    pub data_dir: &'a Path,
    /// Names and addresses that the server's certificate must hold.
    pub sans: BTreeSet<String>,
    /// Where the written kubeconfig points.
    pub url: String,
    pub token: Option<&'a str>,
    /// Seconds since the epoch.
    pub now: i64,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

/// `m8s1.<sha256 of the CA's DER>.<secret>`
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub ca_hash: String,
    pub secret: String,
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "m8s1.{}.{}", self.ca_hash, self.secret)
    }
}

/// Signs and verifies service-account tokens with ES256.
pub struct TokenKey {
    pair: EcdsaKeyPair,
}

impl TokenKey {
    fn from_pem(pem: &str) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &entropy::source())
                .map_err(|e| e.to_string())?;
        Ok(Self { pair })
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&entropy::source(), message).expect("signing needs only randomness");
        signature.as_ref().to_vec()
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        key.verify(message, signature).is_ok()
    }

    /// Names the key in a token's header, so that a later key can stand beside it.
    pub fn id(&self) -> String {
        entropy::hex(&Sha256::digest(self.pair.public_key().as_ref())[..16])
    }
}

impl Pki {
    /// Reads what is there, makes what is not, and writes `kubeconfig.yaml`, `token` and `server-token`.
    pub fn load(subject: &Subject<'_>) -> Result<Self, Error> {
        let tls = subject.data_dir.join("tls");
        create_dir(subject.data_dir)?;
        create_dir(&tls)?;

        let (ca_pem, ca) = authority(&tls, subject.now)?;
        let ca_der = parse_certificate(&ca_pem).map_err(|what| Error::Damaged { path: tls.join("ca.crt"), what })?;
        let ca_hash = entropy::hex(&Sha256::digest(&ca_der));

        let server = leaf(&tls, "server", &ca, subject.now, &Profile::server(subject.sans.clone()))?;
        let admin = leaf(&tls, "admin", &ca, subject.now, &Profile::client("minik8s-admin"))?;
        let node_client = leaf(&tls, "apiserver-node-client", &ca, subject.now, &Profile::client(SERVER))?;
        // For `etcdctl`, which finds it by its name.
        leaf(&tls, "etcd-client", &ca, subject.now, &Profile::client("minik8s-etcd-client"))?;
        let service_accounts = token_key(&tls)?;
        let server_token = token(&subject.data_dir.join(SERVER_TOKEN), &ca_hash, None)?;
        let join_token = token(&subject.data_dir.join("token"), &ca_hash, subject.token)?;
        if join_token.secret == server_token.secret {
            let what = "is the servers': whoever joins an agent with it would have every key. Give another, or none"
                .to_owned();
            return Err(Error::Token { what });
        }

        let kubeconfig = subject.data_dir.join("kubeconfig.yaml");
        write_if_changed(&kubeconfig, kubeconfig_text(&subject.url, &ca_pem, &admin).as_bytes())?;
        Ok(Self { ca_pem, ca_der, ca, server, node_client, service_accounts, join_token, server_token, kubeconfig })
    }

    /// The TLS side of the listener: our certificate, and client certificates verified when a client has one.
    pub fn server_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let mut config = self.listener_config(Clients::Any)?;
        config.alpn_protocols = [PROTOCOL, b"h2", b"http/1.1"].map(<[u8]>::to_vec).to_vec();
        Ok(Arc::new(config))
    }

    fn listener_config(&self, clients: Clients) -> Result<rustls::ServerConfig, Error> {
        let tls = |e: &dyn std::fmt::Display| Error::Tls { what: e.to_string() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(|e| tls(&e))?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let verifier = match clients {
            Clients::Any => verifier.allow_unauthenticated(),
            Clients::Certified => verifier,
        };
        let verifier = verifier.build().map_err(|e| tls(&e))?;
        let certificate = parse_certificate(&self.server.certificate).map_err(|e| tls(&e))?;
        let key = PrivateKeyDer::from_pem_slice(self.server.key.as_bytes()).map_err(|e| tls(&e))?;
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .map_err(|e| tls(&e))
    }

    /// The TLS side of the etcd API: nobody is let in without a certificate, nor with one that [`admits_to_etcd`] refuses.
    pub fn etcd_config(&self) -> Result<Arc<rustls::ServerConfig>, Error> {
        let mut config = self.listener_config(Clients::Certified)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// The TLS side of connections to nodes: only servers of this cluster's CA, our client certificate shown.
    pub fn node_client_config(&self) -> Result<Arc<rustls::ClientConfig>, Error> {
        let tls = |e: &dyn std::fmt::Display| Error::Tls { what: e.to_string() };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(|e| tls(&e))?;
        let certificate = parse_certificate(&self.node_client.certificate).map_err(|e| tls(&e))?;
        let key = PrivateKeyDer::from_pem_slice(self.node_client.key.as_bytes()).map_err(|e| tls(&e))?;
        let mut config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .map_err(|e| tls(&e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Signs the request of a node. What the request asks for beyond its key is ignored: the subject, names and
    /// usages come from us.
    pub fn sign_node(&self, csr_pem: &str, node: &str, ip: IpAddr, now: i64) -> Result<String, rcgen::Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let sans = BTreeSet::from([node.to_owned(), ip.to_string()]);
        request.params = Profile {
            common_name: format!("system:node:{node}"),
            organization: Some("system:nodes"),
            sans,
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
        }
        .params(now)?;
        Ok(request.signed_by(&self.ca)?.pem())
    }
}

/// Who may connect.
enum Clients {
    Any,
    Certified,
}

/// Whether a certificate of this cluster's opens the etcd API, which knows no finer rights: an administrator's does, a
/// node's does not.
pub fn admits_to_etcd(der: &[u8]) -> bool {
    Identity::from_certificate(der).is_some_and(|identity| identity.in_group(MASTERS))
}

/// The sentence that a leaf certificate states.
struct Profile {
    common_name: String,
    organization: Option<&'static str>,
    sans: BTreeSet<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Profile {
    fn server(sans: BTreeSet<String>) -> Self {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Self { common_name: "kube-apiserver".into(), organization: None, sans, usages }
    }

    fn client(name: &str) -> Self {
        Self {
            common_name: name.into(),
            organization: Some("system:masters"),
            sans: BTreeSet::new(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    fn params(&self, now: i64) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = self.organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        for san in &self.sans {
            params.subject_alt_names.push(match san.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(san.as_str().try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages.clone();
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, now, LEAF_LIFE);
        Ok(params)
    }
}

fn set_life(params: &mut CertificateParams, now: i64, life: Duration) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.max(0).unsigned_abs());
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
    let mut serial = entropy::bytes::<16>();
    // A serial number is a positive integer.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

fn authority(tls: &Path, now: i64) -> Result<(String, Issuer<'static, KeyPair>), Error> {
    let (certificate, key) = (tls.join("ca.crt"), tls.join("ca.key"));
    let damaged = |path: &Path, e: rcgen::Error| Error::Damaged { path: path.to_owned(), what: e.to_string() };
    if let Some(key_pem) = read(&key)? {
        let pair = KeyPair::from_pem(&key_pem).map_err(|e| damaged(&key, e))?;
        if let Some(pem) = read(&certificate)? {
            let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(|e| damaged(&certificate, e))?;
            return Ok((pem, issuer));
        }
        return Err(Error::Damaged { path: certificate, what: "it is missing while ca.key exists".into() });
    }
    let issue = |source| Error::Issue { subject: "the cluster's certificate authority".into(), source };
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "minik8s-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_life(&mut params, now, CA_LIFE);
    let pem = params.self_signed(&pair).map_err(issue)?.pem();
    // The certificate goes first: the key's presence says that both are there.
    write(&certificate, pem.as_bytes())?;
    write(&key, pair.serialize_pem().as_bytes())?;
    let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(issue)?;
    Ok((pem, issuer))
}

fn leaf(tls: &Path, name: &str, ca: &Issuer<'_, KeyPair>, now: i64, profile: &Profile) -> Result<Leaf, Error> {
    let (certificate_path, key_path) = (tls.join(format!("{name}.crt")), tls.join(format!("{name}.key")));
    if let (Some(certificate), Some(key)) = (read(&certificate_path)?, read(&key_path)?)
        && still_good(&certificate, &key, now, profile)
    {
        return Ok(Leaf { certificate, key });
    }
    let issue = |source| Error::Issue { subject: profile.common_name.clone(), source };
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
    let certificate = profile.params(now).and_then(|p| p.signed_by(&pair, ca)).map_err(issue)?.pem();
    let leaf = Leaf { certificate, key: pair.serialize_pem() };
    write(&key_path, leaf.key.as_bytes())?;
    write(&certificate_path, leaf.certificate.as_bytes())?;
    Ok(leaf)
}

/// Whether a certificate on disk still says what it should, for long enough, and belongs to its key.
fn still_good(certificate: &str, key: &str, now: i64, profile: &Profile) -> bool {
    let Ok(der) = parse_certificate(certificate) else { return false };
    let Ok((_, x509)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let Ok(pair) = KeyPair::from_pem(key) else { return false };
    let expires = x509.validity().not_after.timestamp();
    let sans = x509.subject_alternative_name().ok().flatten().map(|e| names(&e.value.general_names));
    expires - now > RENEW_BEFORE.as_secs() as i64
        && sans.unwrap_or_default() == profile.sans
        && x509.public_key().subject_public_key.data.as_ref() == pair.public_key_raw()
}

fn names(names: &[x509_parser::extensions::GeneralName<'_>]) -> BTreeSet<String> {
    use x509_parser::extensions::GeneralName;
    let name = |n: &GeneralName<'_>| match n {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(b) => match b.len() {
            4 => <[u8; 4]>::try_from(*b).ok().map(|b| IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*b).ok().map(|b| IpAddr::from(b).to_string()),
        },
        _ => None,
    };
    names.iter().filter_map(name).collect()
}

fn token_key(tls: &Path) -> Result<TokenKey, Error> {
    let path = tls.join("service-account.key");
    let pem = match read(&path)? {
        Some(pem) => pem,
        None => {
            let issue = |source| Error::Issue { subject: "service-account tokens".into(), source };
            let pem = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?.serialize_pem();
            write(&path, pem.as_bytes())?;
            pem
        }
    };
    TokenKey::from_pem(&pem).map_err(|what| Error::Damaged { path, what })
}

/// The key in [`ENCRYPTION_KEY`], where the file is there.
pub fn encryption_key(data_dir: &Path) -> Result<Option<[u8; KEY_LEN]>, Error> {
    let path = data_dir.join(ENCRYPTION_KEY);
    let Some(text) = read(&path)? else { return Ok(None) };
    match BASE64_STANDARD.decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok()) {
        Some(key) => Ok(Some(key)),
        None => Err(Error::EncryptionKey { path, what: "holds no key" }),
    }
}

/// Makes [`ENCRYPTION_KEY`]. The caller knows that nothing is encrypted yet.
pub fn make_encryption_key(data_dir: &Path) -> Result<[u8; KEY_LEN], Error> {
    let key = entropy::bytes();
    write(&data_dir.join(ENCRYPTION_KEY), format!("{}\n", BASE64_STANDARD.encode(key)).as_bytes())?;
    Ok(key)
}

/// A token of this cluster: the one asked for, else the one on disk, else a new one.
fn token(path: &Path, ca_hash: &str, wanted: Option<&str>) -> Result<JoinToken, Error> {
    let on_disk = read(path)?;
    let secret = match (wanted, on_disk) {
        (Some(wanted), _) => parse_wanted(wanted, ca_hash)?,
        (None, Some(text)) => match text.trim().split('.').collect::<Vec<_>>()[..] {
            ["m8s1", _, secret] if !secret.is_empty() => secret.to_owned(),
            _ => return Err(Error::Damaged { path: path.to_owned(), what: "it holds no token".into() }),
        },
        (None, None) => entropy::hex(&entropy::bytes::<16>()),
    };
    let token = JoinToken { ca_hash: ca_hash.to_owned(), secret };
    write_if_changed(path, format!("{token}\n").as_bytes())?;
    Ok(token)
}

/// A whole token must name this cluster's CA; anything without a dot is taken as the secret alone.
fn parse_wanted(wanted: &str, ca_hash: &str) -> Result<String, Error> {
    let refuse = |what: &str| Error::Token { what: what.to_owned() };
    let secret = match wanted.split('.').collect::<Vec<_>>()[..] {
        [secret] => secret,
        ["m8s1", hash, secret] if hash == ca_hash => secret,
        ["m8s1", _, _] => {
            return Err(refuse("names another cluster's certificate authority: give only the secret, its last part"));
        }
        _ => return Err(refuse("must be a secret without dots, or a whole m8s1.<hash>.<secret> token")),
    };
    if secret.len() < 8 || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refuse("must have a secret of at least 8 printable characters"));
    }
    Ok(secret.to_owned())
}

fn kubeconfig_text(url: &str, ca: &str, admin: &Leaf) -> String {
    let data = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: minik8s\nclusters:\n- name: minik8s\n  cluster:\n    server: {url}\n    \
         certificate-authority-data: {}\ncontexts:\n- name: minik8s\n  context:\n    cluster: minik8s\n    user: \
         minik8s-admin\nusers:\n- name: minik8s-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        data(ca),
        data(&admin.certificate),
        data(&admin.key)
    )
}

/// The files of [`SHARED`], by name.
pub fn shared_files(data_dir: &Path) -> Result<BTreeMap<String, String>, Error> {
    let file = |name: &str| {
        let path = data_dir.join(name);
        let missing = || Error::Damaged { path: path.clone(), what: "it is missing".into() };
        Ok((name.to_owned(), read(&path)?.ok_or_else(missing)?))
    };
    SHARED.into_iter().map(file).collect()
}

fn parse_certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())
}

/// Makes a directory, and those that lead to it, for this user only.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    let file = |source| Error::File { action: "create the directory", path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file)
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { action: "read", path: path.to_owned(), source }),
    }
}

fn write_if_changed(path: &Path, content: &[u8]) -> Result<(), Error> {
    if read(path)?.is_some_and(|old| old.as_bytes() == content) {
        return Ok(());
    }
    write(path, content)
}

fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    write_private(path, content).map_err(|source| Error::File { action: "write", path: path.to_owned(), source })
}

/// Writes a file that only this user may read, into a directory that is there: the whole of it, or nothing.
pub fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Behind the whole name, so that it can hardly be the name of somebody else's file.
    let mut draft = path.to_owned();
    draft.as_mut_os_string().push(".draft");
    let attempt = || {
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        fs::File::open(dir)?.sync_all()
    };
    attempt().inspect_err(|_| {
        // A full disk must not be kept full by half a file.
        let _ = fs::remove_file(&draft);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn subject<'a>(dir: &'a Path, sans: &[&str], token: Option<&'a str>, now: i64) -> Subject<'a> {
        let sans = sans.iter().map(|s| (*s).to_owned()).collect();
        Subject { data_dir: dir, sans, url: "https://127.0.0.1:6443".into(), token, now }
    }

    #[test]
    fn a_second_start_reads_what_the_first_made() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load(&subject(dir.path(), &["localhost", "127.0.0.1"], None, NOW)).unwrap();
        let second = Pki::load(&subject(dir.path(), &["localhost", "127.0.0.1"], None, NOW + 100)).unwrap();
        assert_eq!(first.ca_pem, second.ca_pem);
        assert_eq!(first.server.certificate, second.server.certificate);
        assert!(first.join_token == second.join_token);
        assert!(second.service_accounts.verify(b"x", &first.service_accounts.sign(b"x")));
        assert!(!second.service_accounts.verify(b"y", &first.service_accounts.sign(b"x")));
        first.server_config().unwrap();
        first.node_client_config().unwrap();
        for file in ["tls/ca.key", "tls/server.key", "token", "kubeconfig.yaml"] {
            let mode = fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn leaves_are_issued_anew_for_new_names_or_before_they_expire() {
        let dir = tempfile::tempdir().unwrap();
        let load = |sans: &[&str], now| Pki::load(&subject(dir.path(), sans, None, now)).unwrap().server.certificate;
        let first = load(&["a"], NOW);
        let renamed = load(&["a", "10.0.0.1"], NOW);
        assert_ne!(first, renamed);
        assert_eq!(renamed, load(&["a", "10.0.0.1"], NOW + 200 * DAY as i64));
        assert_ne!(renamed, load(&["a", "10.0.0.1"], NOW + 250 * DAY as i64));
    }

    #[test]
    fn a_token_given_by_flag() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load(&subject(dir.path(), &[], Some("open-sesame"), NOW)).unwrap().join_token;
        assert_eq!(first.secret, "open-sesame");
        let whole = first.to_string();
        assert!(Pki::load(&subject(dir.path(), &[], Some(&whole), NOW)).is_ok());
        for bad in ["short", "m8s1.00.open-sesame", "a.b"] {
            let error = Pki::load(&subject(dir.path(), &[], Some(bad), NOW)).err().unwrap();
            assert!(matches!(error, Error::Token { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn a_node_gets_only_the_subject_we_choose() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load(&subject(dir.path(), &[], None, NOW)).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut asked = CertificateParams::default();
        asked.distinguished_name.push(DnType::OrganizationName, "system:masters");
        let csr = asked.serialize_request(&key).unwrap().pem().unwrap();
        let pem = pki.sign_node(&csr, "a", "10.0.0.7".parse().unwrap(), NOW).unwrap();
        let der = parse_certificate(&pem).unwrap();
        let (_, x509) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert_eq!(x509.subject().to_string(), "O=system:nodes, CN=system:node:a");
        let sans = names(&x509.subject_alternative_name().unwrap().unwrap().value.general_names);
        assert_eq!(sans, BTreeSet::from(["a".to_owned(), "10.0.0.7".to_owned()]));
        assert!(!x509.is_ca());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let error = Pki::load(&subject(Path::new("/proc/none/minik8s"), &[], None, NOW)).err().unwrap();
        assert!(
            error.to_string().contains("/proc/none/minik8s") && error.to_string().contains("--data-dir"),
            "{error}"
        );
    }
}

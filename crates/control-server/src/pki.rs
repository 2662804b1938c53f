//! The controller's certificate authority: its own certificate, the server's, the hosts', and join tokens.

use rand::TryRngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use std::{
    fmt,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tenet_model::HostName;

const DAY: Duration = Duration::from_secs(86_400);
/// Lifetime of the authority's own certificate.
const CA_LIFETIME: Duration = Duration::from_secs(3_652 * 86_400);
/// Lifetime of the server's certificate, which is made anew long before.
pub(crate) const SERVER_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// Clocks of hosts may be late by this much.
const SKEW: Duration = Duration::from_secs(600);

/// Why the certificate authority does not work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{} cannot be read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One of the authority's two files is missing.
    #[error("{} is missing although the authority's other file is there: restore it from a backup, or move the folder away to begin a new site (all hosts must join again)", path.display())]
    Half {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be made or read.
    #[error("the certificate authority failed")]
    Certificate(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The certificate request is no good.
    #[error("the certificate request is not one that can be signed: send PEM of a PKCS #10 request")]
    Request(#[source] rcgen::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// A site's certificate authority.
pub(crate) struct Pki {
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    host_lifetime: Duration,
}

impl Pki {
    /// Reads the authority in a folder, or makes one.
    pub(crate) fn open(dir: &Path, host_lifetime: Duration, now: SystemTime) -> Result<Self, PkiError> {
        let at = |path: &Path, source| PkiError::File { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| at(dir, e))?;
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at(path, e)),
        };
        let (ca_pem, key_pem) = match (read(&certificate)?, read(&key)?) {
            (Some(c), Some(k)) => (c, k),
            // The certificate is written last: a key alone is a first start that was cut short.
            (None, _) => {
                let (c, k) = make_ca(now)?;
                write_private(&key, k.as_bytes()).map_err(|e| at(&key, e))?;
                write_private(&certificate, c.as_bytes()).map_err(|e| at(&certificate, e))?;
                (c, k)
            }
            (Some(_), None) => return Err(PkiError::Half { path: key }),
        };
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&key_pem)?)?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|e| at(&certificate, std::io::Error::new(std::io::ErrorKind::InvalidData, e)))?;
        Ok(Self { ca_pem, ca_der, issuer, host_lifetime })
    }

    /// PEM of the authority's certificate.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the authority's certificate in hexadecimal.
    pub(crate) fn fingerprint(&self) -> String {
        hex(&tenet_api::client::fingerprint(&self.ca_der))
    }

    /// Signs the key of a request as this host's, whatever else the request asks for.
    pub(crate) fn sign_host(
        &self,
        csr_pem: &str,
        host: &HostName,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(PkiError::Request)?;
        let mut params = params(host.as_str(), now, self.host_lifetime)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }

    /// A fresh certificate of the server for these names and addresses.
    pub(crate) fn server_key(&self, addresses: &[String], now: SystemTime) -> Result<CertifiedKey, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params("tenet controller", now, SERVER_LIFETIME)?;
        let mut names: Vec<&str> = addresses.iter().map(String::as_str).collect();
        names.extend(["localhost", "127.0.0.1", "::1"]);
        names.sort_unstable();
        names.dedup();
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        // The authority's certificate goes with it, so that who knows only its fingerprint can check the chain.
        let chain = vec![certificate.der().clone(), self.ca_der.clone()];
        let der = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let signer = rustls::crypto::ring::sign::any_ecdsa_type(&der)?;
        Ok(CertifiedKey::new(chain, signer))
    }

    /// TLS of the two listeners: REST takes anybody, gRPC only holders of a certificate of this authority.
    pub(crate) fn server_configs(
        &self,
        certificate: &Arc<ServerCertificate>,
    ) -> Result<(Arc<ServerConfig>, Arc<ServerConfig>), PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca_der.clone())?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let resolver = || Arc::clone(certificate) as Arc<dyn ResolvesServerCert>;
        let mut rest = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver());
        rest.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut grpc = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(resolver());
        grpc.alpn_protocols = vec![b"h2".to_vec()];
        Ok((Arc::new(rest), Arc::new(grpc)))
    }
}

/// The server's certificate, replaceable while it serves.
pub(crate) struct ServerCertificate(RwLock<Arc<CertifiedKey>>);

impl ServerCertificate {
    pub(crate) fn new(key: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(key)))
    }

    pub(crate) fn replace(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCertificate")
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The host that a certificate names: its subject's only common name.
pub(crate) fn common_name(der: &CertificateDer<'_>) -> Option<HostName> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = HostName::new(names.next()?.as_str().ok()?).ok()?;
    names.next().is_none().then_some(name)
}

/// Random bytes in hexadecimal.
pub(crate) fn secret() -> Result<String, PkiError> {
    let mut bytes = [0; 24];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(hex(&bytes))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a file that only root can read, at once and durably.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

fn make_ca(now: SystemTime) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let mut params = params("Tenet site CA", now, CA_LIFETIME)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn params(common_name: &str, now: SystemTime, lifetime: Duration) -> Result<CertificateParams, PkiError> {
    let mut serial = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut serial).map_err(|_| PkiError::Random)?;
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    let since_1970 = now.duration_since(UNIX_EPOCH).unwrap_or(DAY);
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970.saturating_sub(SKEW.min(lifetime));
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970 + lifetime;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("tenet-pki-{}-{}", std::process::id(), secret().unwrap()))
    }

    #[test]
    fn authority_stays_the_same_and_is_private() {
        let dir = folder();
        let now = SystemTime::now();
        let first = Pki::open(&dir, DAY, now).unwrap().fingerprint();
        assert_eq!(Pki::open(&dir, DAY, now).unwrap().fingerprint(), first);
        for file in ["ca.pem", "ca-key.pem"] {
            assert_eq!(
                std::fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777,
                0o600,
                "{file}"
            );
        }
        std::fs::remove_file(dir.join("ca-key.pem")).unwrap();
        assert!(matches!(Pki::open(&dir, DAY, now), Err(PkiError::Half { .. })));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn host_certificate_bears_the_given_name_only() {
        let dir = folder();
        let pki = Pki::open(&dir, DAY, SystemTime::now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["evil".into()]).unwrap();
        wish.distinguished_name.push(DnType::CommonName, "evil");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
        let host = HostName::new("h1").unwrap();
        let pem = pki.sign_host(&csr, &host, SystemTime::now()).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(common_name(&der), Some(host.clone()));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
        assert!(matches!(pki.sign_host("garbage", &host, SystemTime::now()), Err(PkiError::Request(_))));
        std::fs::remove_dir_all(dir).unwrap();
    }
}

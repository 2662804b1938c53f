//! Who the host is: key, certificate, CA, and where the controllers are.

use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};
use tenet_api::client::ClientError;

const FILE: &str = "identity.json";
const PENDING: &str = "join-key.pem";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path} cannot be used")]
    File {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key or certificate request cannot be made.
    #[error("a key and certificate request cannot be made")]
    Key(#[from] rcgen::Error),
    /// The controller refused, or did not answer.
    #[error("joining the site at {url} failed")]
    Join {
        /// The controller.
        url: String,
        /// Why.
        #[source]
        source: Box<ClientError>,
    },
    /// The certificate is not one.
    #[error("the certificate in {0} is not understood")]
    Certificate(String),
    /// First start without what it needs.
    #[error("this host has not joined a site yet: name a controller and a token from `tenet host token`")]
    NotJoined,
}

impl IdentityError {
    /// Whether trying again later may help.
    #[must_use]
    pub fn passes(&self) -> bool {
        match self {
            Self::Join { source, .. } => match **source {
                ClientError::Unreachable { .. } => true,
                ClientError::Refused { status, .. } => status >= 500 || status == 429,
                ClientError::Answer(_)
                | ClientError::Tls(_)
                | ClientError::AdminFile { .. }
                | ClientError::Token => false,
            },
            Self::File { .. } | Self::Key(_) | Self::Certificate(_) | Self::NotJoined => false,
        }
    }
}

/// What a host got when it joined. The file is root's alone, as it holds the key.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) host: String,
    pub(crate) pa: IpAddr,
    pub(crate) grpc_port: u16,
    pub(crate) controllers: Vec<String>,
    pub(crate) key_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) ca_pem: String,
}

impl Identity {
    /// The identity of an earlier start, if there is one.
    pub(crate) fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = state_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file(&path, source)),
        };
        let identity = serde_json::from_str(&text);
        identity.map(Some).map_err(|e| file(&path, io::Error::new(io::ErrorKind::InvalidData, e)))
    }

    /// Joins a site with a one-time token. The key is kept from before the request, so that a repeated one is the same.
    pub(crate) async fn join(state_dir: &Path, url: &str, token: &str) -> Result<Self, IdentityError> {
        let pending = state_dir.join(PENDING);
        let key = match fs::read_to_string(&pending).ok().and_then(|pem| KeyPair::from_pem(&pem).ok()) {
            Some(key) => key,
            None => {
                let key = KeyPair::generate()?;
                write_private(&pending, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let joined = tenet_api::client::join(url, token, &request(&key)?)
            .await
            .map_err(|source| IdentityError::Join { url: url.to_owned(), source: Box::new(source) })?;
        let identity = Self {
            host: joined.host.to_string(),
            pa: joined.pa,
            grpc_port: joined.grpc_port,
            controllers: Vec::new(),
            key_pem: key.serialize_pem(),
            certificate_pem: joined.certificate_pem,
            ca_pem: joined.ca_pem,
        };
        identity.validity()?;
        identity.save(state_dir)?;
        // Left behind it would only be used for another join.
        let _ = fs::remove_file(&pending);
        Ok(identity)
    }

    pub(crate) fn save(&self, state_dir: &Path) -> Result<(), IdentityError> {
        let path = state_dir.join(FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| file(&path, io::Error::new(io::ErrorKind::InvalidData, e)))?;
        write_private(&path, &text)
    }

    /// Begin and end of the certificate's life.
    pub(crate) fn validity(&self) -> Result<(SystemTime, SystemTime), IdentityError> {
        let bad = || IdentityError::Certificate(FILE.to_owned());
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(self.certificate_pem.as_bytes()).map_err(|_| bad())?;
        let certificate = pem.parse_x509().map_err(|_| bad())?;
        let time = |t: x509_parser::time::ASN1Time| {
            u64::try_from(t.timestamp())
                .map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s))
                .map_err(|_| bad())
        };
        Ok((time(certificate.validity().not_before)?, time(certificate.validity().not_after)?))
    }

    /// Whether the certificate has not expired.
    pub(crate) fn is_valid(&self) -> bool {
        self.validity().is_ok_and(|(_, end)| SystemTime::now() < end)
    }

    /// When the certificate should be renewed: two thirds into its life.
    pub(crate) fn renew_at(&self) -> Result<SystemTime, IdentityError> {
        let (begin, end) = self.validity()?;
        Ok(begin + end.duration_since(begin).unwrap_or_default() * 2 / 3)
    }
}

/// A certificate request for a key, in PEM. The controller gives the name, so the request has none.
pub(crate) fn request(key: &KeyPair) -> Result<String, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(key)?.pem()?)
}

/// Writes a file that only its owner can read, atomically and durably.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    crate::keep::replace(path, bytes, true).map(drop).map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::File { path: path.display().to_string(), source }
}

//! A typed REST client over TLS with the controller's own CA.

use crate::{
    rest::{
        ApiError, Attach, ChangeReply, ChangesRequest, Counters, CreateVm, Detach, EventLine, HostPatch,
        HostSpec, HostView, Join, Joined, Migrate, MigrationView, NetworkPatch, NetworkSpec, NetworkView,
        Paths, ReceiptOrMigration, ReceiptView, RouteSpec, RouteView, SettingsSpec, SettingsView, Site,
        Status, SubnetSpec, SubnetView, Table, TenantSpec, TenantView, Token, TokenRequest, VmView, Wait,
        WaitQuery,
    },
    tls,
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{net::IpAddr, path::Path, time::Duration};
use tenet_model::{HostName, NetworkRef, SubnetRef, TenantName, VmRef};

pub use crate::tls::{TlsError, fingerprint};

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The controller refused.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        error: ApiError,
    },
    /// The controller could not be reached, or the connection broke.
    #[error("the controller at {url} does not answer")]
    Unreachable {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is not what this version understands.
    #[error("the controller's answer is not understood: {0}")]
    Answer(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The admin file cannot be read.
    #[error("the admin file {path} cannot be read")]
    AdminFile {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is not a join token.
    #[error("this is not a join token: it should read tenet1.FINGERPRINT.SECRET")]
    Token,
}

impl ClientError {
    /// HTTP status, if the controller answered.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. }
            | Self::Answer(_)
            | Self::Tls(_)
            | Self::AdminFile { .. }
            | Self::Token => None,
        }
    }

    /// What the controller said, if it answered.
    #[must_use]
    pub const fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Refused { error, .. } => Some(error),
            Self::Unreachable { .. }
            | Self::Answer(_)
            | Self::Tls(_)
            | Self::AdminFile { .. }
            | Self::Token => None,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { error, .. } => error.hint.clone(),
            Self::Unreachable { source, .. } if source.is_timeout() => {
                "the controller is busy or the network is slow: try again, or give a longer time-out".into()
            }
            Self::Unreachable { .. } => {
                "check that `tenet controller` runs there and that the address and the CA are right".into()
            }
            Self::Answer(_) => "use the `tenet` of the controller's version".into(),
            Self::Tls(_) => "check the CA file that the admin file names".into(),
            Self::AdminFile { .. } => {
                "run as root on the controller's machine, or name an admin file copied from there".into()
            }
            Self::Token => "ask for a new one with `tenet host token`".into(),
        }
    }
}

/// Where the controller is and how to be let in: the file that it writes for root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminFile {
    /// Base URL of REST.
    pub url: String,
    /// Path of the CA's PEM; relative to the file's own folder if not absolute.
    pub ca: String,
    /// Bearer token.
    pub token: String,
}

/// Without the token, which must not reach a log.
impl std::fmt::Debug for AdminFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminFile").field("url", &self.url).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// A controller's REST API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: String,
    wait: WaitQuery,
}

/// Without the token, which must not reach a log.
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("url", &self.url).field("wait", &self.wait).finish_non_exhaustive()
    }
}

impl Client {
    /// Longest wait for an answer that is not held back.
    pub const TIMEOUT: Duration = Duration::from_secs(30);

    /// A client for the controller at this URL (as `https://host:7443`). Changes wait until they are applied.
    ///
    /// # Errors
    /// [`ClientError::Tls`] if the CA is not one.
    pub fn new(url: &str, ca_pem: &str, token: &str) -> Result<Self, ClientError> {
        let url = url.trim_end_matches('/').to_owned();
        let http = http(tls::pinned(ca_pem)?, &url)?;
        let wait = WaitQuery { wait: Wait::Applied, timeout_ms: None };
        Ok(Self { http, url, token: token.to_owned(), wait })
    }

    /// A client from the controller's admin file.
    ///
    /// # Errors
    /// [`ClientError::AdminFile`] if it or the CA cannot be read.
    pub fn from_admin_file(path: &Path) -> Result<Self, ClientError> {
        let read = |p: &Path| {
            std::fs::read_to_string(p)
                .map_err(|source| ClientError::AdminFile { path: p.display().to_string(), source })
        };
        let admin: AdminFile = serde_json::from_str(&read(path)?).map_err(|e| ClientError::AdminFile {
            path: path.display().to_string(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, e),
        })?;
        let ca = path.parent().unwrap_or(Path::new(".")).join(&admin.ca);
        Self::new(&admin.url, &read(&ca)?, &admin.token)
    }

    /// The same client with another rule for how long changes wait.
    #[must_use]
    pub const fn with_wait(mut self, wait: Wait, timeout: Option<Duration>) -> Self {
        self.wait = WaitQuery {
            wait,
            timeout_ms: match timeout {
                Some(t) => Some(t.as_millis() as u64),
                None => None,
            },
        };
        self
    }

    /// The controller's base URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the controller is up.
    pub async fn healthz(&self) -> Result<(), ClientError> {
        self.text("/healthz").await.map(drop)
    }

    /// Metrics in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        self.text("/metrics").await
    }

    /// The OpenAPI document.
    pub async fn openapi(&self) -> Result<String, ClientError> {
        self.text("/openapi.json").await
    }

    /// All tenants.
    pub async fn tenants(&self) -> Result<Vec<TenantView>, ClientError> {
        self.get("/v1/tenants").await
    }

    /// Creates a tenant.
    pub async fn create_tenant(&self, spec: &TenantSpec) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/tenants", Some(spec)).await
    }

    /// Deletes a tenant.
    pub async fn delete_tenant(&self, name: &TenantName) -> Result<ChangeReply, ClientError> {
        self.delete(&format!("/v1/tenants/{name}")).await
    }

    /// All networks.
    pub async fn networks(&self) -> Result<Vec<NetworkView>, ClientError> {
        self.get("/v1/networks").await
    }

    /// One network.
    pub async fn network(&self, name: &NetworkRef) -> Result<NetworkView, ClientError> {
        self.get(&format!("/v1/networks/{name}")).await
    }

    /// Creates a network.
    pub async fn create_network(&self, spec: &NetworkSpec) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/networks", Some(spec)).await
    }

    /// Alters a network; a change of its method is over once all connected hosts send by it.
    pub async fn set_network(
        &self,
        name: &NetworkRef,
        patch: &NetworkPatch,
    ) -> Result<ChangeReply, ClientError> {
        self.change(Method::PATCH, &format!("/v1/networks/{name}"), Some(patch)).await
    }

    /// Deletes a network.
    pub async fn delete_network(&self, name: &NetworkRef) -> Result<ChangeReply, ClientError> {
        self.delete(&format!("/v1/networks/{name}")).await
    }

    /// All subnets.
    pub async fn subnets(&self) -> Result<Vec<SubnetView>, ClientError> {
        self.get("/v1/subnets").await
    }

    /// One subnet.
    pub async fn subnet(&self, name: &SubnetRef) -> Result<SubnetView, ClientError> {
        self.get(&format!("/v1/subnets/{name}")).await
    }

    /// Creates a subnet.
    pub async fn create_subnet(&self, spec: &SubnetSpec) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/subnets", Some(spec)).await
    }

    /// Deletes a subnet.
    pub async fn delete_subnet(&self, name: &SubnetRef) -> Result<ChangeReply, ClientError> {
        self.delete(&format!("/v1/subnets/{name}")).await
    }

    /// All VMs.
    pub async fn vms(&self) -> Result<Vec<VmView>, ClientError> {
        self.get("/v1/vms").await
    }

    /// One VM.
    pub async fn vm(&self, name: &VmRef) -> Result<VmView, ClientError> {
        self.get(&format!("/v1/vms/{name}")).await
    }

    /// Creates a VM, optionally with a port.
    pub async fn create_vm(&self, spec: &CreateVm) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/vms", Some(spec)).await
    }

    /// Deletes a VM with its ports.
    pub async fn delete_vm(&self, name: &VmRef) -> Result<ChangeReply, ClientError> {
        self.delete(&format!("/v1/vms/{name}")).await
    }

    /// Attaches a VM's port to a device.
    pub async fn attach(&self, vm: &VmRef, attach: &Attach) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, &format!("/v1/vms/{vm}/attach"), Some(attach)).await
    }

    /// Detaches a VM's port (or all) from its host.
    pub async fn detach(&self, vm: &VmRef, detach: &Detach) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, &format!("/v1/vms/{vm}/detach"), Some(detach)).await
    }

    /// All customer routes.
    pub async fn routes(&self) -> Result<Vec<RouteView>, ClientError> {
        self.get("/v1/routes").await
    }

    /// Creates a customer route, or alters its metric.
    pub async fn create_route(&self, spec: &RouteSpec) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/routes", Some(spec)).await
    }

    /// Deletes a customer route.
    pub async fn delete_route(
        &self,
        network: &NetworkRef,
        prefix: IpNet,
        next_hop: IpAddr,
    ) -> Result<ChangeReply, ClientError> {
        let request = self.request(Method::DELETE, "/v1/routes").query(&self.wait).query(&[
            ("network", network.to_string()),
            ("prefix", prefix.to_string()),
            ("next_hop", next_hop.to_string()),
        ]);
        self.send(self.held(request)).await
    }

    /// All hosts.
    pub async fn hosts(&self) -> Result<Vec<HostView>, ClientError> {
        self.get("/v1/hosts").await
    }

    /// One host with all that is known of it.
    pub async fn host(&self, name: &HostName) -> Result<crate::rest::HostStatus, ClientError> {
        self.get(&format!("/v1/hosts/{name}")).await
    }

    /// Adds a host.
    pub async fn create_host(&self, spec: &HostSpec) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/hosts", Some(spec)).await
    }

    /// Alters a host.
    pub async fn set_host(&self, name: &HostName, patch: &HostPatch) -> Result<ChangeReply, ClientError> {
        self.change(Method::PATCH, &format!("/v1/hosts/{name}"), Some(patch)).await
    }

    /// Removes a host.
    pub async fn delete_host(&self, name: &HostName) -> Result<ChangeReply, ClientError> {
        self.delete(&format!("/v1/hosts/{name}")).await
    }

    /// A one-time join token for a host; adds the host if it does not exist.
    pub async fn host_token(&self, request: &TokenRequest) -> Result<Token, ClientError> {
        self.send(self.request(Method::POST, "/v1/join-tokens").json(request)).await
    }

    /// Begins a live migration; with the client's wait on `applied`, returns once the VM may move.
    pub async fn migrate(&self, vm: &VmRef, migrate: &Migrate) -> Result<MigrationView, ClientError> {
        let request =
            self.request(Method::POST, &format!("/v1/vms/{vm}/migrate")).query(&self.wait).json(migrate);
        self.send(self.held(request)).await
    }

    /// Says that the VM runs on the destination; with the client's wait on `applied`, returns once it is done.
    pub async fn migrate_switch(&self, vm: &VmRef) -> Result<ReceiptOrMigration, ClientError> {
        let request = self.request(Method::POST, &format!("/v1/vms/{vm}/switch")).query(&self.wait);
        self.send(self.held(request)).await
    }

    /// Gives a migration up that is not yet switched.
    pub async fn migrate_cancel(&self, vm: &VmRef) -> Result<ReceiptView, ClientError> {
        let request = self.request(Method::POST, &format!("/v1/vms/{vm}/cancel")).query(&self.wait);
        self.send(self.held(request)).await
    }

    /// Running migrations.
    pub async fn migrations(&self) -> Result<Vec<MigrationView>, ClientError> {
        self.get("/v1/migrations").await
    }

    /// Receipts of past migrations, newest last.
    pub async fn receipts(&self) -> Result<Vec<ReceiptView>, ClientError> {
        self.get("/v1/receipts").await
    }

    /// What holds for the whole site.
    pub async fn settings(&self) -> Result<SettingsView, ClientError> {
        self.get("/v1/settings").await
    }

    /// Alters what holds for the whole site.
    pub async fn set_settings(&self, patch: &SettingsSpec) -> Result<ChangeReply, ClientError> {
        self.change(Method::PATCH, "/v1/settings", Some(patch)).await
    }

    /// The ways between the hosts, or those of one host.
    pub async fn paths(&self, host: Option<&HostName>) -> Result<Paths, ClientError> {
        self.send(self.request(Method::GET, "/v1/paths").query(&[("host", host)])).await
    }

    /// Applies several changes as one.
    pub async fn changes(&self, request: &ChangesRequest) -> Result<ChangeReply, ClientError> {
        self.change(Method::POST, "/v1/changes", Some(request)).await
    }

    /// The whole desired state.
    pub async fn site(&self) -> Result<Site, ClientError> {
        self.get("/v1/site").await
    }

    /// Desired, applied, proven.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// The lookup table: as desired for the whole site, or as it stands in the kernel of one host.
    pub async fn table(&self, host: Option<&HostName>) -> Result<Table, ClientError> {
        self.send(self.request(Method::GET, "/v1/table").query(&[("host", host)])).await
    }

    /// Counters of all hosts, or of one.
    pub async fn counters(&self, host: Option<&HostName>) -> Result<Counters, ClientError> {
        self.send(self.request(Method::GET, "/v1/counters").query(&[("host", host)])).await
    }

    /// Recent events; with `follow`, then those to come, until dropped.
    pub async fn events(
        &self,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<EventLine, ClientError>> + Send + use<>, ClientError> {
        let mut request = self.request(Method::GET, "/v1/events").query(&[("follow", follow)]);
        if follow {
            request = request.timeout(Duration::from_secs(365 * 86_400));
        }
        let response = self.accepted(request).await?;
        let url = self.url.clone();
        let chunks = response
            .bytes_stream()
            .map_err(move |source| ClientError::Unreachable { url: url.clone(), source });
        Ok(lines(chunks)
            .map(|line| serde_json::from_slice(&line?).map_err(|e| ClientError::Answer(e.to_string()))))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(self.request(Method::GET, path)).await
    }

    async fn change<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<ChangeReply, ClientError> {
        let mut request = self.request(method, path).query(&self.wait);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.send(self.held(request)).await
    }

    async fn delete(&self, path: &str) -> Result<ChangeReply, ClientError> {
        self.change::<()>(Method::DELETE, path, None).await
    }

    async fn text(&self, path: &str) -> Result<String, ClientError> {
        let response = self.accepted(self.request(Method::GET, path)).await?;
        response.text().await.map_err(|source| self.unreachable(source))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
            .timeout(Self::TIMEOUT)
    }

    /// Gives a request whose answer may be held back the time for it.
    fn held(&self, request: RequestBuilder) -> RequestBuilder {
        match self.wait.timeout_ms {
            Some(ms) => request.timeout(Self::TIMEOUT + Duration::from_millis(ms)),
            None => request,
        }
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.accepted(request).await?;
        let bytes = response.bytes().await.map_err(|source| self.unreachable(source))?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer(e.to_string()))
    }

    async fn accepted(&self, request: RequestBuilder) -> Result<reqwest::Response, ClientError> {
        accepted(request, &self.url).await
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), source }
    }
}

/// The parts of a join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA's certificate.
    pub fingerprint: [u8; 32],
    /// What only the controller's operator and the host know.
    pub secret: String,
}

impl std::str::FromStr for JoinToken {
    type Err = ClientError;
    fn from_str(text: &str) -> Result<Self, ClientError> {
        let mut parts = text.trim().split('.');
        let (Some("tenet1"), Some(hex), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ClientError::Token);
        };
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) || secret.is_empty() {
            return Err(ClientError::Token);
        }
        let mut fingerprint = [0; 32];
        for (byte, pair) in fingerprint.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ClientError::Token)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ClientError::Token)?;
        }
        Ok(Self { fingerprint, secret: secret.to_owned() })
    }
}

/// Joins a site: the controller is trusted by the token's fingerprint of its CA, and gives a certificate for the key of
/// the request.
///
/// # Errors
/// [`ClientError`] if the token is no token, the controller another one, or the token used, expired or unknown.
pub async fn join(url: &str, token: &str, csr_pem: &str) -> Result<Joined, ClientError> {
    let parts: JoinToken = token.parse()?;
    let url = url.trim_end_matches('/');
    let http = http(tls::by_fingerprint(parts.fingerprint)?, url)?;
    let body = Join { token: token.trim().to_owned(), csr_pem: csr_pem.to_owned() };
    let response =
        accepted(http.post(format!("{url}/v1/join")).json(&body).timeout(Client::TIMEOUT), url).await?;
    let bytes =
        response.bytes().await.map_err(|source| ClientError::Unreachable { url: url.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer(e.to_string()))
}

fn http(tls: rustls::ClientConfig, url: &str) -> Result<reqwest::Client, ClientError> {
    reqwest::Client::builder()
        .use_preconfigured_tls(tls)
        .connect_timeout(Duration::from_secs(5))
        .no_proxy()
        .https_only(true)
        .build()
        .map_err(|source| ClientError::Unreachable { url: url.to_owned(), source })
}

async fn accepted(request: RequestBuilder, url: &str) -> Result<reqwest::Response, ClientError> {
    let unreachable = |source| ClientError::Unreachable { url: url.to_owned(), source };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = response.bytes().await.map_err(unreachable)?;
    let error = serde_json::from_slice(&bytes).unwrap_or_else(|_| no_reason(status));
    Err(ClientError::Refused { status: status.as_u16(), error })
}

/// An error of something between us and the controller, or of another program at its address.
fn no_reason(status: StatusCode) -> ApiError {
    ApiError {
        code: "unknown".into(),
        message: format!("the answer was HTTP {status} without a reason that this version understands"),
        hint: "check that the address is a Tenet controller's".into(),
        problems: Vec::new(),
    }
}

/// Cuts a stream of chunks into lines.
fn lines<B: AsRef<[u8]>>(
    chunks: impl Stream<Item = Result<B, ClientError>> + Send + 'static,
) -> impl Stream<Item = Result<Vec<u8>, ClientError>> + Send {
    let state = (Box::pin(chunks), Vec::<u8>::new());
    futures::stream::try_unfold(state, |(mut chunks, mut buffer)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = buffer.drain(..=end).collect();
                line.pop();
                if line.is_empty() {
                    continue;
                }
                return Ok(Some((line, (chunks, buffer))));
            }
            match chunks.next().await {
                Some(chunk) => buffer.extend_from_slice(chunk?.as_ref()),
                None if buffer.is_empty() => return Ok(None),
                None => buffer.push(b'\n'),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_token_takes_its_form_only() {
        let good = format!("tenet1.{}.s3cret", "ab".repeat(32));
        let token: JoinToken = good.parse().unwrap();
        assert_eq!((token.fingerprint, token.secret.as_str()), ([0xab; 32], "s3cret"));
        for bad in ["", "tenet1", "tenet1..x", "tenet2.ab.x", &format!("{good}.x"), &good.replace("ab", "xy")]
        {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_end() {
        let chunks = ["{\"a\"", ":1}\n\n{}", "\n{", "}"].map(|c| Ok::<_, ClientError>(c.as_bytes()));
        let got: Vec<_> = futures::executor::block_on_stream(Box::pin(lines(futures::stream::iter(chunks))))
            .map(|l| String::from_utf8(l.unwrap()).unwrap())
            .collect();
        assert_eq!(got, ["{\"a\":1}", "{}", "{}"]);
    }
}

//! What runs on a host says to the agent there: types and client of its local socket.
//!
//! HTTP/1.1 with JSON over a Unix socket that only root may open: `POST /v1/prepare`, `POST /v1/release`,
//! `GET /v1/vms`. Errors are [`ApiError`]s, those of the controller word for word.

use crate::rest::ApiError;
use ipnet::IpNet;
use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tenet_model::{HostName, Mac, Name, NetworkRef, PortRef, SubnetRef, VmRef};

/// Where the agent listens, unless told otherwise.
pub const SOCKET: &str = "/run/tenet/agent.sock";

/// What a VM is prepared for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// It starts here. Refused if another host has it.
    #[default]
    Start,
    /// It comes here by a live migration: begins the one to this host, or joins the one under way.
    Incoming,
}

/// Asks for a VM's ports on this host; answered once devices, programs and tables are there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The VM.
    pub vm: VmRef,
    /// Its ports; all that the site knows of it if none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PreparePort>,
    /// What for.
    #[serde(default, rename = "for")]
    pub purpose: Purpose,
    /// Name of its libvirt domain, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Longest wait; [`Prepare::TIMEOUT`] if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl Prepare {
    /// Longest wait unless the request says.
    pub const TIMEOUT: Duration = Duration::from_secs(20);
    /// Longest wait that a request may ask for.
    pub const LONGEST: Duration = Duration::from_secs(300);

    /// A VM with the ports that the site knows.
    #[must_use]
    pub const fn new(vm: VmRef, purpose: Purpose) -> Self {
        Self { vm, ports: Vec::new(), purpose, domain: None, timeout_ms: None }
    }

    /// How long the agent may take.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.timeout_ms.map_or(Self::TIMEOUT, Duration::from_millis).min(Self::LONGEST)
    }
}

/// A port to prepare: one of the VM's in the site (by name, else by MAC, else its only one), or a new one where network
/// and subnet are given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparePort {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Name>,
    /// Its MAC; chosen if the port is new and none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its network, which must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRef>,
    /// Its subnet there, which must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Name>,
    /// Its customer addresses; chosen if the port is new and none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// A device that somebody else makes; the agent makes a tap if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Queues that the VM opens of such a tap; what the port has stays, 1 for a new one, if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
}

/// A VM whose ports are ready.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// The VM.
    pub vm: VmRef,
    /// Its ports on this host.
    pub ports: Vec<LocalPort>,
    /// Whether this is the last known state, as the controller cannot be asked.
    #[serde(default)]
    pub fail_static: bool,
    /// This host's name in the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
}

const fn one() -> u16 {
    1
}

/// A port on this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LocalPort {
    /// Its name.
    pub port: PortRef,
    /// Its device here.
    pub device: String,
    /// Whether the agent made the device, as a tap.
    #[serde(default)]
    pub tap: bool,
    /// Queues that the VM may open of it.
    #[serde(default = "one")]
    pub queues: u16,
    /// Its MAC.
    pub mac: Mac,
    /// Largest packet that the VM may send, in bytes.
    pub mtu: u32,
    /// Its customer addresses.
    pub addresses: Vec<IpAddr>,
    /// Its subnet.
    pub subnet: SubnetRef,
    /// The subnet's prefixes with their gateways.
    pub prefixes: Vec<LocalPrefix>,
    /// The gateway of the first prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// `blocked`, `active`, `prepared` or `moved`, as the kernel has it; empty: not there yet.
    pub state: String,
    /// What is missing, in plain words; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A prefix of a port's subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LocalPrefix {
    /// The prefix.
    pub prefix: IpNet,
    /// The gateway's address in it.
    pub gateway: IpAddr,
}

/// How a VM's stay on this host ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It stopped: its ports stay in the site, on no host.
    Stopped,
    /// It did not come up: a migration to or from this host is given up, a start undone.
    Failed,
    /// It runs on another host now.
    Moved,
}

/// Says that a VM is over here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The VM.
    pub vm: VmRef,
    /// How it ended.
    pub outcome: Outcome,
    /// The ports that it is about; all that it has here if none is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Name>,
}

/// What became of a release.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Released {
    /// The VM.
    pub vm: VmRef,
    /// In plain words.
    pub done: String,
}

/// A VM with ports on this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LocalVm {
    /// Its name.
    pub vm: VmRef,
    /// Name of its libvirt domain, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Where the agent looks for its QEMU's monitor; left out: nowhere, or it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp_dir: Option<String>,
    /// Its ports on this host.
    pub ports: Vec<LocalPort>,
}

/// Why a request to the agent came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The agent, or the controller behind it, refused.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        error: ApiError,
    },
    /// Nobody listens there.
    #[error("the agent does not answer at {}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is not what this version understands.
    #[error("the agent's answer is not understood: {0}")]
    Answer(String),
    /// A client cannot be made.
    #[error("no client for the agent's socket can be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LocalError {
    /// HTTP status, if the agent answered.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. } | Self::Answer(_) | Self::Client(_) => None,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { error, .. } => error.hint.clone(),
            Self::Unreachable { source, .. } if source.is_timeout() => {
                "the agent is busy, or hangs: look at its log, or give a longer time-out".into()
            }
            Self::Unreachable { socket, .. } => format!(
                "check that `tenet agent` runs on this host with `--socket {}`, and that you are root",
                socket.display()
            ),
            Self::Answer(_) => "use the `tenet` of the agent's version".into(),
            Self::Client(_) => "this is a defect of Tenet".into(),
        }
    }

    /// Message and hint in one line, for tools that show no more.
    #[must_use]
    pub fn line(&self) -> String {
        let (text, hint) = (self.to_string().replace('\n', "; "), self.hint());
        if hint.is_empty() { text } else { format!("{text}: {hint}") }
    }
}

/// The agent of this host.
#[derive(Clone, Debug)]
pub struct LocalClient {
    http: reqwest::Client,
    socket: PathBuf,
}

impl LocalClient {
    /// Longest wait beyond what the agent was given.
    const SLACK: Duration = Duration::from_secs(10);
    /// Longest wait for a request that takes no time.
    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A client for the agent at this socket ([`SOCKET`] unless the agent was told otherwise).
    ///
    /// # Errors
    /// [`LocalError::Client`] if the system gives no means for one; whether anybody listens shows at the first request.
    pub fn new(socket: &Path) -> Result<Self, LocalError> {
        let tls = crate::tls::none().map_err(|e| LocalError::Client(Box::new(e)))?;
        let http = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .unix_socket(socket)
            .no_proxy()
            .build()
            .map_err(|e| LocalError::Client(Box::new(e)))?;
        Ok(Self { http, socket: socket.to_owned() })
    }

    /// Where it asks.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has a VM's ports made ready here.
    pub async fn prepare(&self, prepare: &Prepare) -> Result<Prepared, LocalError> {
        let request = self.request(Method::POST, "/v1/prepare").json(prepare);
        self.answer(request.timeout(prepare.longest() + Self::SLACK)).await
    }

    /// Says that a VM is over here.
    pub async fn release(&self, release: &Release) -> Result<Released, LocalError> {
        let request = self.request(Method::POST, "/v1/release").json(release);
        self.answer(request.timeout(Self::TIMEOUT)).await
    }

    /// The VMs with ports on this host.
    pub async fn vms(&self) -> Result<Vec<LocalVm>, LocalError> {
        self.answer(self.request(Method::GET, "/v1/vms").timeout(Self::TIMEOUT)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://agent{path}"))
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, LocalError> {
        let unreachable = |source| LocalError::Unreachable { socket: self.socket.clone(), source };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| LocalError::Answer(e.to_string()));
        }
        match serde_json::from_slice(&body) {
            Ok(error) => Err(LocalError::Refused { status: status.as_u16(), error }),
            Err(_) => Err(LocalError::Answer(format!("status {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_may_say_little_or_all() {
        let little: Prepare = serde_json::from_str(r#"{"vm":"contoso/sql"}"#).unwrap();
        assert_eq!(little, Prepare::new("contoso/sql".parse().unwrap(), Purpose::Start));
        assert_eq!(little.longest(), Prepare::TIMEOUT);
        let all = r#"{"vm":"contoso/sql","ports":[{"port":"eth0","mac":"52:54:00:00:00:01",
            "network":"contoso/blue","subnet":"web","addresses":["10.1.1.7"],"device":"vnet0"}],
            "for":"incoming","domain":"sql-1","timeout_ms":5000}"#;
        let all: Prepare = serde_json::from_str(all).unwrap();
        assert_eq!(all.purpose, Purpose::Incoming);
        let again: Prepare = serde_json::from_str(&serde_json::to_string(&all).unwrap()).unwrap();
        assert_eq!(again, all);
        assert!(serde_json::from_str::<Prepare>(r#"{"vm":"contoso/sql","fro":"start"}"#).is_err());
        let release: Release = serde_json::from_str(r#"{"vm":"a/b","outcome":"moved"}"#).unwrap();
        assert_eq!(release.outcome, Outcome::Moved);
    }

    #[test]
    fn a_client_can_be_made_anywhere() {
        let client = LocalClient::new(Path::new("/nowhere/agent.sock")).unwrap();
        assert_eq!(client.socket(), Path::new("/nowhere/agent.sock"));
    }

    #[test]
    fn an_error_is_one_line() {
        let error = ApiError {
            code: "conflict".into(),
            message: "VM a/b is on host h2".into(),
            hint: "stop it there".into(),
            problems: Vec::new(),
        };
        assert_eq!(LocalError::Refused { status: 409, error }.line(), "VM a/b is on host h2: stop it there");
    }
}

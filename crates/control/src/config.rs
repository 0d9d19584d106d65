//! Settings of the control plane, each declared once.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use service::telemetry::Format;

use crate::kubernetes::{check, webhook};

/// The control plane: knows who workloads are, what they may do, and makes their credentials.
///
/// Examples:
///   countersign-control serve --issuer-url https://issuer.example --trust-domain example.org
///   countersign-control discovery-export --state /var/lib/countersign/control --issuer-url https://issuer.example ./public
#[derive(Debug, Parser)]
#[command(name = "countersign-control", version, verbatim_doc_comment, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once, at start")]
pub enum Command {
    /// Serve proxies and administrators.
    Serve(Settings),
    /// Serve a Kubernetes API server: give pods their proxy.
    Webhook(webhook::settings::Settings),
    /// Say whether an installation answers, from inside its cluster: what `helm test` runs.
    Check(check::Settings),
    /// Write the discovery document and the key set as files.
    DiscoveryExport {
        /// Of which installation.
        #[command(flatten)]
        installation: Installation,
        /// The issuer's URL.
        #[arg(long, value_name = "URL")]
        issuer_url: String,
        /// Where to.
        directory: PathBuf,
    },
    /// Begin a new epoch, after the database was restored from a backup.
    NewEpoch {
        /// Of which installation.
        #[command(flatten)]
        installation: Installation,
    },
    /// Make the next root of the control plane's CA, where the one that signs may be known to others. A running control
    /// plane sends it to its proxies within a minute; both roots are believed until 30 days after the new one signs.
    RotateCa {
        /// Of which installation.
        #[command(flatten)]
        installation: Installation,
        /// The trust domain.
        #[arg(long, value_name = "NAME")]
        trust_domain: String,
        /// How long to wait before it signs: a proxy that is away for longer has to be given the new root.
        #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
        ahead: i64,
    },
    /// Print the definitions of the custom resources, or write each as KIND.yaml.
    Crds {
        /// Leave out the CEL rules, which API servers before 1.25 do not know.
        #[arg(long)]
        without_rules: bool,
        /// Where to write them.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Print the table of settings of a subcommand as Markdown.
    #[command(hide = true)]
    Reference {
        /// The subcommand.
        #[arg(default_value = "serve")]
        subcommand: String,
    },
}

/// An installation that is there, for what is done to it beside `serve`.
#[derive(Clone, Debug, Args)]
pub struct Installation {
    /// The state directory of `serve`.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_STATE",
        value_name = "DIR",
        default_value = "/var/lib/countersign/control"
    )]
    pub state: PathBuf,

    /// File with the key that seals secrets at rest, if `serve` is given one; it is not made here.
    #[arg(long, env = "COUNTERSIGN_CONTROL_SEALING_KEY", value_name = "FILE")]
    pub sealing_key: Option<PathBuf>,
}

/// Settings of `serve`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Configuration file (YAML); its keys are the names of these flags.
    #[arg(long, env = "COUNTERSIGN_CONTROL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Directory of the database and, unless given elsewhere, of the sealing key and the administrator's token.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_STATE",
        value_name = "DIR",
        default_value = "/var/lib/countersign/control"
    )]
    pub state: PathBuf,

    /// File with the key that seals secrets at rest (32 bytes); made at the first start, and never for a database that is
    /// there.
    #[arg(long, env = "COUNTERSIGN_CONTROL_SEALING_KEY", value_name = "FILE")]
    pub sealing_key: Option<PathBuf>,

    /// Address for proxies, and for administrators with a token: gRPC over TLS 1.3.
    #[arg(long, env = "COUNTERSIGN_CONTROL_LISTEN", value_name = "ADDR", default_value = "[::]:8440")]
    pub listen: SocketAddr,

    /// Address of discovery document and key set; serves nothing else.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_DISCOVERY_LISTEN",
        value_name = "ADDR",
        default_value = "[::]:8441"
    )]
    pub discovery_listen: SocketAddr,

    /// Certificate chain (PEM) of the discovery listener; without one it speaks plain HTTP, for a proxy in front of it.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_DISCOVERY_CERTIFICATE",
        value_name = "FILE",
        requires = "discovery_key"
    )]
    pub discovery_certificate: Option<PathBuf>,

    /// Private key (PEM) of the discovery listener.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_DISCOVERY_KEY",
        value_name = "FILE",
        requires = "discovery_certificate"
    )]
    pub discovery_key: Option<PathBuf>,

    /// The issuer's URL: `iss` of every token. Destinations find the keys under it.
    #[arg(long, env = "COUNTERSIGN_CONTROL_ISSUER_URL", value_name = "URL")]
    pub issuer_url: String,

    /// Trust domain of all callers' SPIFFE IDs.
    #[arg(long, env = "COUNTERSIGN_CONTROL_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: String,

    /// What happens to calls that no policy covers.
    #[arg(long, env = "COUNTERSIGN_CONTROL_EGRESS", value_enum, default_value_t = Egress::Observe)]
    pub egress: Egress,

    /// Namespaces in which calls that no policy covers are refused.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_ENFORCE_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    pub enforce_namespace: Vec<String>,

    /// Take the documents of a cluster's custom resources, and the egress modes of its namespaces. Which cluster: that of
    /// the pod, or of `KUBECONFIG`.
    #[arg(long, env = "COUNTERSIGN_CONTROL_KUBERNETES")]
    pub kubernetes: bool,

    /// More roots (PEM) for issuers of evidence, beside the system's: a file, or a directory of .crt and .pem files.
    #[arg(long, env = "COUNTERSIGN_CONTROL_ROOTS", value_name = "PATH")]
    pub roots: Option<PathBuf>,

    /// Socket for administrators.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_SOCKET",
        value_name = "PATH",
        default_value = "/run/countersign/control.sock"
    )]
    pub socket: PathBuf,

    /// File of the administrator's token; made at the first start.
    #[arg(long, env = "COUNTERSIGN_CONTROL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Service account whose tokens (for --admin-audience) open the door for administrators, to do everything.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_ADMIN_SERVICE_ACCOUNT",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ','
    )]
    pub admin_service_account: Vec<String>,

    /// Service account whose tokens open it to look.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_VIEWER_SERVICE_ACCOUNT",
        value_name = "NAMESPACE/NAME",
        value_delimiter = ','
    )]
    pub viewer_service_account: Vec<String>,

    /// Audience of administrators' tokens: another than that of workloads' evidence.
    #[arg(
        long,
        env = "COUNTERSIGN_CONTROL_ADMIN_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = "countersign-administration"
    )]
    pub admin_audience: String,

    /// Where to write the root certificate (PEM) that proxies need.
    #[arg(long, env = "COUNTERSIGN_CONTROL_CA_OUT", value_name = "FILE")]
    pub ca_out: Option<PathBuf>,

    /// ConfigMap to write the root certificates into (key `ca.crt`), in the namespace of a cluster that it runs in.
    #[arg(long, env = "COUNTERSIGN_CONTROL_CA_CONFIG_MAP", value_name = "NAME")]
    pub ca_config_map: Option<String>,

    /// Address of health and metrics: /livez, /readyz, /metrics.
    #[arg(long, env = "COUNTERSIGN_CONTROL_HEALTH", value_name = "ADDR", default_value = "127.0.0.1:8442")]
    pub health: SocketAddr,

    /// Seconds that a proxy's certificate lives.
    #[arg(long, env = "COUNTERSIGN_CONTROL_SVID_LIFETIME", value_name = "SECONDS", default_value_t = 3600,
        value_parser = clap::value_parser!(i64).range(10..=86_400))]
    pub svid_lifetime: i64,

    /// What is logged: a level, or directives such as `info,control::watch=debug`.
    #[arg(long, env = "COUNTERSIGN_CONTROL_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How it is logged.
    #[arg(long, env = "COUNTERSIGN_CONTROL_LOG_FORMAT", value_enum, default_value_t = Format::Auto)]
    pub log_format: Format,
}

/// What happens to calls that no policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Egress {
    /// They pass and are recorded.
    Observe,
    /// They are refused.
    Enforce,
}

impl From<Egress> for model::slice::Egress {
    fn from(egress: Egress) -> Self {
        match egress {
            Egress::Observe => Self::Observe,
            Egress::Enforce => Self::Enforce,
        }
    }
}

//! What can be asked.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;

use crate::command::completion;

/// Gives workloads credentials that live for minutes, by policy, with a record of every use.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, propagate_version = true, arg_required_else_help = true, after_help = HELP)]
pub struct Cli {
    /// The control plane's socket; without this and the following, /run/countersign/control.sock if it is there, else the
    /// cluster of the current context.
    #[arg(long, global = true, env = "COUNTERSIGN_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// URL of the control plane, instead of its socket; needs --token-file and --ca-file.
    #[arg(
        long,
        global = true,
        env = "COUNTERSIGN_SERVER",
        value_name = "URL",
        requires = "token_file",
        requires = "ca_file"
    )]
    pub server: Option<String>,

    /// File with the administrator's token.
    #[arg(long, global = true, env = "COUNTERSIGN_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// File with the control plane's root certificate (PEM).
    #[arg(long, global = true, env = "COUNTERSIGN_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,

    /// Reach the control plane in the cluster of the current context, through its API server.
    #[arg(long, global = true, env = "COUNTERSIGN_KUBERNETES", conflicts_with_all = ["socket", "server"])]
    pub kubernetes: bool,

    /// The same with another context.
    #[arg(long, global = true, value_name = "NAME", conflicts_with_all = ["socket", "server"])]
    pub context: Option<String>,

    /// The same with another file than KUBECONFIG names, or ~/.kube/config is.
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["socket", "server"])]
    pub kubeconfig: Option<PathBuf>,

    /// Namespace of the control plane in the cluster; countersign-system if absent.
    #[arg(
        long,
        global = true,
        env = "COUNTERSIGN_NAMESPACE",
        value_name = "NAME",
        conflicts_with_all = ["socket", "server"]
    )]
    pub control_plane_namespace: Option<String>,

    /// Form of the answer. What is written for people may change; JSON only gains fields.
    #[arg(short, long, global = true, value_enum, default_value_t = Form::Text, value_name = "FORM")]
    pub output: Form,

    /// Tables without their header.
    #[arg(long, global = true)]
    pub no_headers: bool,

    /// Whether to use colour; NO_COLOR and CLICOLOR_FORCE are heeded.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The socket that is given, or the usual one.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| PathBuf::from("/run/countersign/control.sock"))
    }
}

/// What stands below the help: examples, and what the end of a command means.
pub const HELP: &str = "Examples:
  countersign apply -f policies/
  countersign explain --workload payments/billing GET https://api.example/v1/charges
  countersign revoke workload/billing -n payments --reason 'incident 7'
  countersign bypass workload/billing -n payments --for 30m --reason 'incident 7'
  countersign audit --since 10m --denied
  countersign doctor

Exit codes: 0 done or yes, 1 error, 2 usage, 3 the answer is no (denied, broken, documents wrong),
4 not permitted, 5 control plane unreachable, 124 --wait ran out, 130 Ctrl-C. They do not depend on -o.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or change documents: all of them, or none if one is wrong.
    Apply(Apply),
    /// Show documents, blocks, bypasses, grants or callers.
    Get(Get),
    /// Delete documents.
    Delete(Delete),
    /// Say why a call would be, or was, allowed or denied; or what a code means.
    Explain(Explain),
    /// Block a workload, destination, provider or everything until it is lifted; or drop one grant.
    Revoke(Revoke),
    /// Let a workload's connections pass untouched for a while, without a credential: for the day when something is
    /// wrong with Countersign itself.
    Bypass(Bypass),
    /// List what happened, or prove that the record is whole.
    Audit(Audit),
    /// Show the proxies that are connected and the policy that they run.
    Status,
    /// Say which of the runtimes here trust the proxy, and what to set for those that do not; by running them.
    Doctor(Doctor),
    /// Print what a shell needs to complete commands and live names: bash, zsh, fish, powershell or elvish.
    #[command(after_help = "Example:\n  source <(countersign completion bash)")]
    Completion {
        /// The shell.
        shell: String,
    },
    /// Print a generated page of the documentation.
    #[command(hide = true)]
    Reference {
        /// `errors`, `resources` or `countersign`.
        page: String,
    },
}

/// `apply`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign apply -f policies/
  countersign apply -f policy.yaml --dry-run")]
pub struct Apply {
    /// File or directory with documents; `-` for standard input.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
    /// Namespace of documents that name none.
    #[arg(short, long, value_name = "NAME", default_value = "")]
    pub namespace: String,
}

/// `get`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign get accesspolicies -n payments
  countersign get accesspolicy/payments/billing-charges -o yaml
  countersign get grants -o wide")]
pub struct Get {
    /// A kind of document, `blocks`, `bypasses`, `grants` or `callers`; or KIND/NAME, KIND/NAMESPACE/NAME.
    #[arg(add = ArgValueCandidates::new(completion::kinds))]
    pub kind: String,
    /// Only this one.
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: Option<String>,
    /// Only of this namespace.
    #[arg(short, long, value_name = "NAME", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Of all namespaces; so without -n too.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

/// `delete`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign delete accesspolicy billing-charges -n payments --dry-run
  countersign get accesspolicies -n payments -o name | xargs -n1 countersign delete")]
pub struct Delete {
    /// A kind of document; or KIND/NAME, KIND/NAMESPACE/NAME.
    #[arg(required_unless_present = "file", add = ArgValueCandidates::new(completion::document_kinds))]
    pub kind: Option<String>,
    /// Its name.
    #[arg(add = ArgValueCandidates::new(completion::names))]
    pub name: Option<String>,
    /// File with the documents to delete.
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "kind")]
    pub file: Vec<PathBuf>,
    /// Its namespace.
    #[arg(short, long, value_name = "NAME", default_value = "")]
    pub namespace: String,
    /// Only say what would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before a guardrail is removed.
    #[arg(long)]
    pub yes: bool,
}

/// `explain`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign explain --workload payments/billing GET https://api.example/v1/charges
  countersign explain last
  countersign explain CS5001
  countersign explain AccessPolicy.spec.when
  countersign explain context                what an expression can see")]
pub struct Explain {
    /// A decision's id, `last`, a code such as CS5001, a kind or a field of one, or `context`; or a method and a URL
    /// with --workload.
    #[arg(required = true, num_args = 1..=2, add = ArgValueCandidates::new(completion::explainable))]
    pub what: Vec<String>,
    /// The workload that would call: its name, namespace/name, or the SPIFFE ID of an attested caller.
    #[arg(long, value_name = "WORKLOAD", add = ArgValueCandidates::new(completion::workloads))]
    pub workload: Option<String>,
    /// Its namespace.
    #[arg(short, long, value_name = "NAME", requires = "workload")]
    pub namespace: Option<String>,
}

/// `revoke`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  countersign revoke workload/billing -n payments --reason 'incident 7'
  countersign revoke workload/billing -n payments --lift
  countersign revoke grant/0198c2b3")]
pub struct Revoke {
    /// workload/NAME, destination/NAME, credentialprovider/NAME (each also as KIND/NAMESPACE/NAME), grant/ID or
    /// everything.
    #[arg(add = ArgValueCandidates::new(completion::revocable))]
    pub target: String,
    /// Its namespace.
    #[arg(short, long, value_name = "NAME", default_value = "")]
    pub namespace: String,
    /// End the block instead.
    #[arg(long)]
    pub lift: bool,
    /// Why; shown to whoever meets the block.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Only say what would be done, and until when what was sent would stay good.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask before everything is stopped.
    #[arg(long)]
    pub yes: bool,
    /// How long to wait for the proxies that it concerns to confirm: 2s, 1m.
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub wait: String,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// What they call: a host that a policy covers. Unless given, the proxy's own port for this question on localhost:
    /// 14021, as injection sets it, or 15021, the proxy's default; the first that answers.
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Only this runtime; can be given more than once.
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Where the application finds the proxy's trust bundle.
    #[arg(long, value_name = "FILE", default_value = service::trust::BUNDLE)]
    pub bundle: String,
}

/// `bypass`
#[derive(Debug, Args)]
pub struct Bypass {
    /// workload/NAME.
    pub target: String,
    /// Its namespace.
    #[arg(short, long, value_name = "NAME", default_value = "")]
    pub namespace: String,
    /// For how long: 30s, 10m, 2h; 24h at most. It ends by itself.
    #[arg(long = "for", value_name = "DURATION", required_unless_present = "lift", conflicts_with = "lift")]
    pub duration: Option<String>,
    /// Why; shown wherever the bypass is.
    #[arg(long, value_name = "TEXT", required_unless_present = "lift", conflicts_with = "lift")]
    pub reason: Option<String>,
    /// End the bypass instead.
    #[arg(long)]
    pub lift: bool,
    /// How long to wait for the proxies that it concerns to confirm: 2s, 1m.
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub wait: String,
}

/// `audit`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  countersign audit --since 10m --denied
  countersign audit -f
  countersign audit -o jsonl > export.jsonl && countersign audit verify export.jsonl"
)]
pub struct Audit {
    /// Instead of listing.
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// Only the last while: 30s, 10m, 2h, 1d.
    #[arg(long, value_name = "DURATION")]
    pub since: Option<String>,
    /// Only what was refused.
    #[arg(long)]
    pub denied: bool,
    /// Only this caller: a SPIFFE ID, or its path.
    #[arg(long, value_name = "CALLER", default_value = "")]
    pub caller: String,
    /// Go on with what happens from now.
    #[arg(short, long)]
    pub follow: bool,
}

/// `audit …`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Prove that nothing was changed, lost or put in: in the control plane, or in an export (`audit -o jsonl`).
    Verify {
        /// An export.
        file: Option<PathBuf>,
    },
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// For people, with more columns.
    Wide,
    /// For programs.
    Json,
    /// One JSON value for each line: audit records as they are chained.
    Jsonl,
    /// Documents as they are applied.
    Yaml,
    /// kind/name alone.
    Name,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

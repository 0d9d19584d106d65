//! The test harness: a world of namespaces, programs and clients as builders, so that a test reads as a story.
//!
//! ```text
//! let mut world = World::started(Egress::Enforce)?;
//! let billing = world.billing()?;
//! assert_eq!(billing.payments("/v1/charges/42").send()?.status, 200);
//! ```

pub mod certificates;
pub mod chart;
pub mod clients;
pub mod cluster;
pub mod daemon;
pub mod edge;
pub mod footprint;
pub mod grpc;
pub mod helm;
pub mod http;
pub mod names;
pub mod pod;
pub mod raw;
pub mod recorded;
pub mod sandbox;
pub mod search;
pub mod stand_in;
pub mod tls_server;
pub mod workload;
pub mod world;

pub use certificates::Certificates;
pub use clients::Clients;
pub use cluster::Cluster;
pub use daemon::Daemon;
pub use footprint::Footprint;
pub use helm::Helm;
pub use http::{Answer, Call};
pub use sandbox::{As, Mode, Output, Place, Process, Sandbox};
pub use workload::{Evidence, Steady, Workload};
pub use world::{Arrival, Egress, Seen, World};

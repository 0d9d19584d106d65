//! Custom resources that are about to be created, changed or deleted.

use std::sync::Arc;

use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::{Api, Client};
use model::slice::Egress;
use policy::compile::EgressDefaults;
use resources::Set;
use resources::kind::Kind;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use crate::kubernetes::controller::observe::{self, Cluster};
use crate::kubernetes::controller::resource::{Resource, api_resource};
use crate::kubernetes::validate;

/// Answers the reviews of `POST /validate`.
#[derive(Clone)]
pub struct Documents {
    client: Client,
    known: watch::Receiver<Arc<Known>>,
}

/// What the cluster has.
#[derive(Default)]
struct Known {
    set: Set,
    egress: EgressDefaults,
}

impl Documents {
    /// Begins to watch, for as long as the program runs. Nobody waits for the first list: where the definitions are not
    /// installed pods must get their proxies all the same.
    #[must_use]
    pub fn watch(client: Client, egress: Egress) -> Self {
        let (sender, known) = watch::channel(Arc::default());
        let mut telling = observe::watch(&client);
        tokio::spawn(async move {
            let mut cluster = Cluster::default();
            while let Some(told) = telling.next().await {
                cluster.hear(told);
                observe::gather(&mut telling, &mut cluster).await;
                sender.send_replace(Arc::new(Known::of(&cluster, egress)));
            }
        });
        Self { client, known }
    }

    /// Answers one.
    pub async fn answer(self, request: AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let known = self.known.borrow().clone();
        let mut response = validate::answer(&request, &known.set, &known.egress);
        // The watch may not have told yet of what was changed just before: what is refused because of another resource is
        // refused only after that one was asked for.
        if !response.allowed && validate::answer(&request, &Set::default(), &known.egress).allowed {
            match self.newest(&known.set).await {
                Ok(set) => response = validate::answer(&request, &set, &known.egress),
                Err(error) => {
                    tracing::warn!(%error, "resources can't be asked for; what was known of them is used")
                }
            }
        }
        let (name, namespace) = (&request.name, request.namespace.as_deref().unwrap_or_default());
        let (kind, user) = (&request.kind.kind, request.user_info.username.as_deref().unwrap_or_default());
        let message = &response.result.message;
        match response.allowed {
            true => {
                tracing::debug!(kind, namespace, name, user, warnings = ?response.warnings, "a resource is taken")
            }
            false => tracing::info!(kind, namespace, name, user, message, "a resource is refused"),
        }
        response
    }

    /// The set with the kinds in it as they are now by which a policy can be refused.
    async fn newest(&self, known: &Set) -> kube::Result<Set> {
        let mut set = known.clone();
        for kind in [Kind::Workload, Kind::Destination] {
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &api_resource(kind));
            for object in api.list(&ListParams::default()).await? {
                let document = Resource::read(kind, &object).and_then(|resource| resource.document.ok());
                document.map(|document| set.insert(document));
            }
        }
        Ok(set)
    }
}

impl Known {
    fn of(cluster: &Cluster, configured: Egress) -> Self {
        let observed = cluster.observed();
        let mut set = Set::default();
        for document in observed.resources.iter().filter_map(|resource| resource.document.as_ref().ok()) {
            set.insert(document.clone());
        }
        Self { set, egress: EgressDefaults { configured, namespaces: observed.namespaces } }
    }
}

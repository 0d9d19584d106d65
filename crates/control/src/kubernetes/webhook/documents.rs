//! Custom resources that are about to be created, changed or deleted.

use std::sync::Arc;
use std::time::Duration;

use kube::api::ListParams;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::{Api, Client};
use model::ResourceRef;
use model::slice::Egress;
use policy::compile::EgressDefaults;
use resources::kind::Kind;
use resources::{Document, Set};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use super::namespaces::Namespaces;
use crate::kubernetes::controller::observe::{self, Cluster};
use crate::kubernetes::controller::resource::{Resource, api_resource};
use crate::kubernetes::validate;

/// For asking what a review's object names; less than API servers wait for a webhook.
const PATIENCE: Duration = Duration::from_secs(2);

/// Resources that are asked for to answer one review; a policy names a handful.
const ASKED_MAX: usize = 32;

/// Answers the reviews of `POST /validate`.
#[derive(Clone)]
pub struct Documents {
    client: Client,
    known: watch::Receiver<Arc<Set>>,
    namespaces: Namespaces,
    egress: Egress,
}

impl Documents {
    /// Begins to watch, for as long as the program runs. Nobody waits for the first list: where the definitions are not
    /// installed pods must get their proxies all the same.
    #[must_use]
    pub fn watch(client: Client, namespaces: Namespaces, egress: Egress) -> Self {
        let (sender, known) = watch::channel(Arc::default());
        let mut telling = observe::watch_resources(&client);
        tokio::spawn(async move {
            let mut cluster = Cluster::default();
            while let Some(told) = telling.next().await {
                cluster.hear(told);
                observe::gather(&mut telling, &mut cluster).await;
                sender.send_replace(Arc::new(set_of(&cluster)));
            }
        });
        Self { client, known, namespaces, egress }
    }

    /// Answers one.
    pub async fn answer(self, request: AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let mut known = self.known.borrow().clone();
        let egress = EgressDefaults { configured: self.egress, namespaces: self.namespaces.egress() };
        // The watch may not have told yet of what was made just before: nobody is warned of a reference to it, or refused
        // because of it, before it was asked for.
        let missing = validate::missing(&request, &known);
        if !missing.is_empty() {
            known = Arc::new(self.with(&known, missing).await);
        }
        let mut response = validate::answer(&request, &known, &egress);
        if !response.allowed && validate::answer(&request, &Set::default(), &egress).allowed {
            match self.newest(&known).await {
                Ok(set) => response = validate::answer(&request, &set, &egress),
                Err(error) => {
                    tracing::warn!(%error, "resources can't be asked for; what was known of them is used")
                }
            }
        }
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let wrong = self.namespaces.wrong_egress(namespace).filter(|_| response.allowed);
        response.warnings.get_or_insert_default().extend(wrong);
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

    /// The set with these in it, as far as they are there. Who can't be asked knows of no more than before.
    async fn with(&self, known: &Set, missing: Vec<(Kind, ResourceRef)>) -> Set {
        let mut set = known.clone();
        let asking = async {
            for (kind, name) in missing.into_iter().take(ASKED_MAX) {
                if let Some(document) = self.get(kind, &name).await? {
                    set.insert(document);
                }
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "a resource can't be asked for; what was known of them is used")
            }
            Err(_) => tracing::warn!("resources are slow to be had; what was known of them is used"),
        }
        set
    }

    async fn get(&self, kind: Kind, name: &ResourceRef) -> kube::Result<Option<Document>> {
        let resource = api_resource(kind);
        let api: Api<DynamicObject> = match &name.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace.as_str(), &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let found = api.get_opt(&name.name).await?;
        let read = |object: &DynamicObject| Resource::read(kind, object)?.document.ok();
        Ok(found.as_ref().and_then(read))
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

fn set_of(cluster: &Cluster) -> Set {
    let mut set = Set::default();
    let observed = cluster.observed();
    for document in observed.resources.iter().filter_map(|resource| resource.document.as_ref().ok()) {
        set.insert(document.clone());
    }
    set
}

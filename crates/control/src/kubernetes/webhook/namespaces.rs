//! What namespaces say by their labels.

use std::collections::BTreeMap;

use anyhow::Context as _;
use k8s_openapi::api::core::v1;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use model::Namespace;
use model::slice::Egress;
use tokio_stream::StreamExt as _;

use crate::kubernetes::controller::observe::egress_of;

type Labelled = PartialObjectMeta<v1::Namespace>;

/// The labels of all namespaces, kept current by a watch.
#[derive(Clone)]
pub struct Namespaces {
    known: Store<Labelled>,
    api: Api<Labelled>,
}

impl Namespaces {
    /// Begins to watch, for as long as the program runs.
    #[must_use]
    pub fn watch(client: Client) -> Self {
        let api: Api<Labelled> = Api::all(client);
        let (known, writer) = reflector::store();
        let stream = watcher(api.clone(), watcher::Config::default())
            .default_backoff()
            .modify(|namespace| {
                // Of each only its labels are needed.
                namespace.metadata.managed_fields = None;
                namespace.metadata.annotations = None;
            })
            .reflect(writer);
        tokio::spawn(async move {
            tokio::pin!(stream);
            while let Some(event) = stream.next().await {
                if let Err(error) = event {
                    tracing::warn!(%error, "namespaces can't be watched; what was known of them is used");
                }
            }
        });
        Self { known, api }
    }

    /// Waits until all are known.
    ///
    /// # Errors
    /// If the watch has ended, which it does not by itself.
    pub async fn known(&self) -> anyhow::Result<()> {
        self.known.wait_until_ready().await.context("namespaces are not watched any more")
    }

    /// The labels of a namespace. One that the watch has not told of yet is asked for.
    ///
    /// # Errors
    /// If it can't be asked for, or there is none.
    pub async fn labels(&self, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
        if let Some(namespace) = self.known.get(&ObjectRef::new(name)) {
            return Ok(namespace.metadata.labels.clone().unwrap_or_default());
        }
        let namespace = self.api.get_opt(name).await.context("the namespace can't be asked for")?;
        let namespace = namespace.context("there is no such namespace")?;
        Ok(namespace.metadata.labels.unwrap_or_default())
    }
    /// The egress modes that namespaces say, as the controller takes them.
    #[must_use]
    pub fn egress(&self) -> BTreeMap<Namespace, Egress> {
        let said = |namespace: &Labelled| {
            let egress = egress_of(namespace).unwrap_or(Some(Egress::Enforce))?;
            Some((Namespace::new(namespace.metadata.name.as_deref()?).ok()?, egress))
        };
        self.known.state().iter().filter_map(|namespace| said(namespace)).collect()
    }

    /// What is wrong with the egress mode that a namespace says, if anything.
    #[must_use]
    pub fn wrong_egress(&self, name: &str) -> Option<String> {
        egress_of(&*self.known.get(&ObjectRef::new(name))?).err()
    }
}

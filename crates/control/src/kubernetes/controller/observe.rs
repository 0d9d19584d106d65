//! What the cluster has, kept current by watches: our custom resources, and what namespaces say of egress.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll, select_all};
use k8s_openapi::api::core::v1;
use kube::api::PartialObjectMeta;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_of};
use kube::{Api, Client};
use model::slice::Egress;
use model::{Namespace, ResourceRef};
use resources::kind::Kind;
use tokio::time::Instant;

use super::plan::Observed;
use super::resource::{Resource, api_resource};
use crate::kubernetes::inject::names;

/// Changes that come closer together than this are one: `kubectl apply -f` sends its documents one by one.
const QUIET: Duration = Duration::from_millis(50);

/// But nothing waits longer than this: a change is to be in force everywhere within a second.
const GATHER_MAX: Duration = Duration::from_millis(250);

/// Something that the API server tells.
pub enum Told {
    /// About custom resources of a kind.
    Resource(Kind, Event<DynamicObject>),
    /// About namespaces.
    Namespace(Event<PartialObjectMeta<v1::Namespace>>),
    /// A watch broke; it is begun again by itself.
    Broken(String, watcher::Error),
}

/// All that the API server tells, for as long as it is polled.
pub type Telling = SelectAll<BoxStream<'static, Told>>;

/// Begins to watch everything: what is listed first is as of now or later.
pub fn watch(client: &Client) -> Telling {
    let mut telling = watch_resources(client);
    let namespaces: Api<PartialObjectMeta<v1::Namespace>> = Api::all(client.clone());
    let namespaces =
        watch_of(namespaces, watcher::Config::default()).default_backoff().map(|told| match told {
            Ok(event) => Told::Namespace(event),
            Err(error) => Told::Broken("namespaces".to_owned(), error),
        });
    telling.push(namespaces.boxed());
    telling
}

/// Begins to watch our custom resources alone.
pub fn watch_resources(client: &Client) -> Telling {
    let streams = Kind::ALL.into_iter().map(|kind| {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &api_resource(kind));
        watch_of(api, watcher::Config::default())
            .default_backoff()
            .map(move |told| match told {
                Ok(event) => Told::Resource(kind, event),
                Err(error) => Told::Broken(kind.plural(), error),
            })
            .boxed()
    });
    select_all(streams)
}

/// Takes in what comes right behind.
pub async fn gather(telling: &mut Telling, cluster: &mut Cluster) {
    let end = Instant::now() + GATHER_MAX;
    while let Ok(Some(told)) = tokio::time::timeout_at(end.min(Instant::now() + QUIET), telling.next()).await
    {
        cluster.hear(told);
    }
}

/// What is known of the cluster.
#[derive(Default)]
pub struct Cluster {
    kinds: BTreeMap<Kind, Seen<ResourceRef, Resource>>,
    namespaces: Seen<Namespace, Egress>,
}

impl Cluster {
    /// Takes in what was told.
    pub fn hear(&mut self, told: Told) {
        match told {
            Told::Resource(kind, event) => {
                let read = |object: &DynamicObject| {
                    Resource::read(kind, object).map(|resource| (resource.name.clone(), Some(resource)))
                };
                self.kinds.entry(kind).or_default().hear(&event, read);
            }
            Told::Namespace(event) => self.namespaces.hear(&event, read_namespace),
            Told::Broken(what, error) => {
                tracing::warn!(what, %error, "can't be watched; what was known of them stays in force");
            }
        }
    }

    /// Whether everything has been listed: before, what is missing is not known to be gone.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.namespaces.listed
            && Kind::ALL.iter().all(|kind| self.kinds.get(kind).is_some_and(|seen| seen.listed))
    }

    /// What there is, for the plan.
    #[must_use]
    pub fn observed(&self) -> Observed<'_> {
        Observed {
            resources: self.kinds.values().flat_map(|seen| seen.items.values()).collect(),
            namespaces: self.namespaces.items.clone(),
        }
    }
}

/// The egress mode that a namespace says, if it says one.
///
/// # Errors
/// A value that means nothing, with what to do. It counts as the stricter mode: who wrote it wanted something else than
/// the default.
pub fn egress_of(namespace: &PartialObjectMeta<v1::Namespace>) -> Result<Option<Egress>, String> {
    let said = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(names::EGRESS));
    let Some(said) = said else { return Ok(None) };
    resources::values::egress(said).map(Some).ok_or_else(|| {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let label = names::EGRESS;
        format!(
            "label {label} of namespace {name} must be observe or enforce, not {said:?}; enforce is taken"
        )
    })
}

fn read_namespace(namespace: &PartialObjectMeta<v1::Namespace>) -> Option<(Namespace, Option<Egress>)> {
    let name = Namespace::new(namespace.metadata.name.as_deref()?).ok()?;
    let egress = egress_of(namespace).unwrap_or_else(|wrong| {
        tracing::warn!(namespace = %name, "{wrong}");
        Some(Egress::Enforce)
    });
    Some((name, egress))
}

/// Objects by name. While they are listed anew, those of before stand.
struct Seen<K, V> {
    items: BTreeMap<K, V>,
    listing: BTreeMap<K, V>,
    listed: bool,
}

impl<K, V> Default for Seen<K, V> {
    fn default() -> Self {
        Self { items: BTreeMap::new(), listing: BTreeMap::new(), listed: false }
    }
}

impl<K: Ord, V> Seen<K, V> {
    /// `read` gives an object's name and what is kept of it, if anything.
    fn hear<T>(&mut self, event: &Event<T>, read: impl Fn(&T) -> Option<(K, Option<V>)>) {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                if let Some((name, Some(value))) = read(object) {
                    self.listing.insert(name, value);
                }
            }
            Event::InitDone => {
                self.items = std::mem::take(&mut self.listing);
                self.listed = true;
            }
            Event::Apply(object) => match read(object) {
                Some((name, Some(value))) => drop(self.items.insert(name, value)),
                Some((name, None)) => drop(self.items.remove(&name)),
                None => {}
            },
            Event::Delete(object) => {
                if let Some((name, _)) = read(object) {
                    self.items.remove(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace(name: &str, label: Option<&str>) -> PartialObjectMeta<v1::Namespace> {
        let labels = label.map(|value| json!({ names::EGRESS: value }));
        serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": { "name": name, "labels": labels },
        }))
        .unwrap()
    }

    #[test]
    fn namespaces_say_their_egress_mode_and_nonsense_is_strict() {
        let mut cluster = Cluster::default();
        cluster.hear(Told::Namespace(Event::Init));
        for (name, label) in [("a", Some("enforce")), ("b", Some("observe")), ("c", Some("no")), ("d", None)]
        {
            cluster.hear(Told::Namespace(Event::InitApply(namespace(name, label))));
        }
        assert!(cluster.observed().namespaces.is_empty(), "the list is not whole yet");
        cluster.hear(Told::Namespace(Event::InitDone));
        let said = |cluster: &Cluster| -> String {
            let said = cluster.observed().namespaces;
            said.iter().map(|(name, egress)| format!("{name}={} ", egress.as_str())).collect()
        };
        assert_eq!(said(&cluster), "a=enforce b=observe c=enforce ");
        cluster.hear(Told::Namespace(Event::Apply(namespace("a", None))));
        cluster.hear(Told::Namespace(Event::Delete(namespace("b", Some("observe")))));
        assert_eq!(said(&cluster), "c=enforce ");
        // What was there before a watch broke stands until all has been listed again.
        cluster.hear(Told::Namespace(Event::Init));
        assert_eq!(said(&cluster), "c=enforce ");
        cluster.hear(Told::Namespace(Event::InitDone));
        assert_eq!(said(&cluster), "");
    }

    #[test]
    fn nothing_is_whole_before_every_kind_was_listed() {
        let mut cluster = Cluster::default();
        let listed = |cluster: &mut Cluster, kind| {
            cluster.hear(Told::Resource(kind, Event::Init));
            cluster.hear(Told::Resource(kind, Event::InitDone));
        };
        cluster.hear(Told::Namespace(Event::Init));
        cluster.hear(Told::Namespace(Event::InitDone));
        for kind in Kind::ALL {
            assert!(!cluster.is_whole());
            listed(&mut cluster, kind);
        }
        assert!(cluster.is_whole());
    }
}

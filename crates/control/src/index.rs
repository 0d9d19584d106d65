//! Policy as it is in force: one owner compiles it at each change, everybody else looks it up.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use attestation::oidc::Provider;
use model::slice::{Block, Bypass, Slice};
use model::{Caller, ResourceRef, SpiffeId, UnixMillis, Version};
use policy::compile::EgressDefaults;
use policy::{Compiled, compile};
use resources::kind::{CredentialProviderSpec, Kind, Spec};
use resources::{Document, Set};
use tokio::sync::watch;
use wire::convert::slice_hash;
use wire::v1;

use crate::store::{State, Store};

/// Everything that decisions are made from, at one version.
pub struct Policies {
    /// The version.
    pub version: Version,
    /// All documents.
    pub set: Set,
    /// Whom we believe.
    pub trust: Vec<Provider>,
    compiled: Compiled,
    blocks: Vec<Block>,
    bypasses: Vec<Bypass>,
    egress: EgressDefaults,
    recipes: BTreeMap<ResourceRef, (CredentialProviderSpec, u64)>,
}

/// The policies of this moment, and the slices that were cut from them.
pub struct Index {
    policies: watch::Receiver<Arc<Policies>>,
    cut: Mutex<HashMap<SpiffeId, Cut>>,
}

/// The last slice of a caller: its content, and the version at which that was new.
struct Cut {
    content: [u8; 32],
    version: Version,
}

/// Slices that are remembered; a forgotten one only means that a proxy is sent an equal slice once more.
const CUT_MAX: usize = 100_000;

impl Index {
    /// Compiles what the store has, and goes on doing so at each change.
    ///
    /// # Errors
    /// If the store fails at the start.
    pub async fn start(store: Arc<dyn Store>, egress: EgressDefaults) -> anyhow::Result<Arc<Self>> {
        let first = Arc::new(policies(store.state().await?, &egress));
        let (sender, receiver) = watch::channel(first);
        tokio::spawn(follow(store, egress, sender));
        Ok(Arc::new(Self { policies: receiver, cut: Mutex::default() }))
    }

    /// The policies of this moment.
    #[must_use]
    pub fn now(&self) -> Arc<Policies> {
        self.policies.borrow().clone()
    }

    /// Ticks at each change.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<Arc<Policies>> {
        self.policies.clone()
    }

    /// A caller's slice of the policies, with the version at which it last changed.
    #[must_use]
    pub fn slice(&self, policies: &Policies, caller: &Caller) -> Slice {
        let mut slice = policies.slice(caller);
        let content = content(&slice);
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.len() >= CUT_MAX {
            cut.clear();
        }
        let known = cut.entry(caller.id.clone()).or_insert(Cut { content, version: policies.version });
        // Of two versions that are looked at at once, the older one changes nothing.
        if known.content != content && policies.version >= known.version {
            *known = Cut { content, version: policies.version };
        }
        if known.content == content {
            slice.version = known.version;
        }
        slice
    }
}

/// A hash of all of a slice but its version and the age of the evidence, which change without changing what it says.
fn content(slice: &Slice) -> [u8; 32] {
    let mut message = v1::Slice::from(slice);
    message.version = None;
    if let Some(caller) = &mut message.caller {
        caller.attestation = None;
    }
    slice_hash(&message)
}

async fn follow(store: Arc<dyn Store>, egress: EgressDefaults, policies: watch::Sender<Arc<Policies>>) {
    loop {
        let seen = policies.borrow().version;
        let state = async {
            let version = store.changes_since(seen).await?;
            if version == seen { Ok(None) } else { store.state().await.map(Some) }
        };
        match state.await {
            Ok(Some(state)) => drop(policies.send(Arc::new(self::policies(state, &egress)))),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(%error, "the store can't be read; the last policies stay in force");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

/// Documents were validated when they were applied; one that can't be used all the same is skipped and told, and what
/// refers to it allows nothing.
fn policies(state: State, configured: &EgressDefaults) -> Policies {
    let mut set = Set::default();
    let mut revisions = BTreeMap::new();
    for stored in &state.documents {
        match Document::from_json(&stored.json) {
            Ok(document) => {
                revisions.insert((stored.kind, stored.name.clone()), stored.revision);
                set.insert(document);
            }
            Err(diagnostics) => {
                let problem = diagnostics.first().map(|d| d.message.clone()).unwrap_or_default();
                tracing::error!(kind = %stored.kind, name = %stored.name, "a stored document is skipped: {problem}");
            }
        }
    }
    let compiled = compile(&set).unwrap_or_else(|diagnostics| {
        for diagnostic in diagnostics {
            tracing::error!(code = %diagnostic.code, "the stored documents do not compile: {}", diagnostic.message);
        }
        // Nothing is allowed rather than something else than was meant.
        Compiled::default()
    });
    let trust = set.of_kind(Kind::TrustProvider).filter_map(|document| match &document.spec {
        Spec::TrustProvider(spec) => Some(Provider { name: document.name.to_string(), spec: spec.clone() }),
        _ => None,
    });
    let recipes = set.of_kind(Kind::CredentialProvider).filter_map(|document| match &document.spec {
        Spec::CredentialProvider(spec) => {
            let revision =
                revisions.get(&(document.kind(), document.name.clone())).copied().unwrap_or_default();
            Some((document.name.clone(), (spec.clone(), revision)))
        }
        _ => None,
    });
    let mut egress = configured.clone();
    for (namespace, said) in state.namespaces {
        let mode = egress.namespaces.entry(namespace).or_insert(said);
        *mode = said.max(*mode);
    }
    Policies {
        version: state.version,
        egress,
        trust: trust.collect(),
        recipes: recipes.collect(),
        blocks: state.blocks.into_iter().map(|stored| stored.block).collect(),
        bypasses: state.bypasses.into_iter().map(|stored| stored.bypass).collect(),
        compiled,
        set,
    }
}

impl Policies {
    /// A caller's slice, at this version.
    #[must_use]
    pub fn slice(&self, caller: &Caller) -> Slice {
        let revision_of = |name: &ResourceRef| self.recipes.get(name).map_or(0, |(_, revision)| *revision);
        self.compiled.slice_for(
            caller,
            &self.blocks,
            &self.bypasses,
            &self.egress,
            self.version,
            &revision_of,
        )
    }

    /// The egress modes that are set outside documents: by configuration, and by namespaces; the stricter one counts.
    #[must_use]
    pub const fn egress(&self) -> &EgressDefaults {
        &self.egress
    }

    /// How many bypasses are in force.
    #[must_use]
    pub fn bypasses_in_force(&self, now: UnixMillis) -> usize {
        self.bypasses.iter().filter(|bypass| bypass.until > now).count()
    }

    /// A credential provider's recipe and revision.
    #[must_use]
    pub fn recipe(&self, name: &ResourceRef) -> Option<&(CredentialProviderSpec, u64)> {
        self.recipes.get(name)
    }

    /// The workloads that a caller matches.
    #[must_use]
    pub fn workloads_of(&self, caller: &Caller) -> Vec<ResourceRef> {
        self.compiled.workloads_of(caller)
    }

    /// The access policies that cover a destination.
    #[must_use]
    pub fn covering(&self, destination: &ResourceRef) -> Vec<&ResourceRef> {
        self.compiled.covering(destination)
    }
}

/// Waits until the index has at least this version: a change of ours is in force when the answer to it goes out.
///
/// # Errors
/// If the index has ended.
pub async fn reached(index: &Index, version: Version) -> anyhow::Result<()> {
    let mut changed = index.changed();
    changed.wait_for(|policies| policies.version >= version).await.context("the index has ended")?;
    Ok(())
}

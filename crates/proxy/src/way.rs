//! What the requests of one connection to one destination have in common, for as long as neither policy nor caller
//! changes: made once, not for each of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use model::slice::ProviderFace;
use model::{Caller, Destination, HostName, RequestFacts};
use policy::Snapshot;
use protocols::edit::Edit;

use crate::capture::accept::OriginalDestination;
use crate::credential::Key;
use crate::protocol::facts::Channel;
use crate::rewrite;
use crate::svid::Svid;
use crate::upstream::pool::{Origin, OriginKey, Pool};

/// From one connection to one destination.
pub struct Way {
    of: Of,
    /// Where its upstream connections are kept.
    pub origin: Rc<Origin>,
    /// Where its requests were going.
    pub original: OriginalDestination,
    /// The same for people.
    pub shown: String,
    /// What changes in its requests.
    pub edit: Edit,
    key: RefCell<Option<Rc<Key>>>,
}

/// Of what a way is made. Weak, so that a connection that lies idle keeps no policy that is no longer in force; as long
/// as they are there, no other object has their address.
struct Of {
    snapshot: Weak<Snapshot>,
    caller: Weak<Caller>,
    destination: Weak<Destination>,
    host: HostName,
    port: u16,
}

/// What a way is asked for with.
#[derive(Clone, Copy)]
pub struct For<'a> {
    /// The policy of this moment.
    pub snapshot: &'a Arc<Snapshot>,
    /// The caller as attested last.
    pub caller: &'a Arc<Caller>,
    /// What is called.
    pub destination: &'a Arc<Destination>,
    /// By what.
    pub facts: &'a RequestFacts,
    /// On which connection.
    pub channel: &'a Channel,
    /// What is shown to a server that asks.
    pub svid: Option<&'a Arc<Svid>>,
}

impl Way {
    fn new(asked: &For<'_>, pool: &Pool) -> Self {
        let (caller, host) = (asked.caller.id.clone(), asked.facts.host.clone());
        let original = asked.channel.destination_of(asked.facts);
        let (secure, svid) = (asked.channel.secure, asked.svid.map(Arc::as_ref));
        let key = OriginKey::new(caller, host.clone(), secure, asked.destination, &original, svid);
        let of = Of {
            snapshot: Arc::downgrade(asked.snapshot),
            caller: Arc::downgrade(asked.caller),
            destination: Arc::downgrade(asked.destination),
            host,
            port: asked.facts.port,
        };
        let edit = rewrite::edit(asked.snapshot, asked.destination);
        let (origin, shown) = (pool.origin(key, asked.svid.cloned()), original.to_string());
        Self { of, origin, original, shown, edit, key: RefCell::default() }
    }

    fn is_for(&self, asked: &For<'_>) -> bool {
        std::ptr::eq(self.of.snapshot.as_ptr(), Arc::as_ptr(asked.snapshot))
            && std::ptr::eq(self.of.caller.as_ptr(), Arc::as_ptr(asked.caller))
            && std::ptr::eq(self.of.destination.as_ptr(), Arc::as_ptr(asked.destination))
            && self.of.host == asked.facts.host
            && self.of.port == asked.facts.port
            && self.origin.key.client_certificate == asked.svid.map(|svid| svid.fingerprint())
    }

    /// The key of credentials by this provider.
    pub fn key(&self, destination: &Destination, face: &ProviderFace) -> Rc<Key> {
        let mut kept = self.key.borrow_mut();
        match &*kept {
            // Its revision and recipe are the snapshot's.
            Some(key) if key.provider == face.name => key.clone(),
            _ => {
                let key = Rc::new(Key::new(destination.name.clone(), face));
                *kept = Some(key.clone());
                key
            }
        }
    }
}

/// A connection's way, kept from one request to the next.
#[derive(Default)]
pub struct Ways(RefCell<Option<Rc<Way>>>);

impl Ways {
    /// The way for a request; that of the last one if nothing has changed.
    pub fn find(&self, asked: &For<'_>, pool: &Pool) -> Rc<Way> {
        let mut kept = self.0.borrow_mut();
        match &*kept {
            Some(way) if way.is_for(asked) => way.clone(),
            _ => {
                let way = Rc::new(Way::new(asked, pool));
                *kept = Some(way.clone());
                way
            }
        }
    }
}

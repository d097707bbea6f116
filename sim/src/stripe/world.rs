//! The state: every object, the clock, the timers. One lock around all of it; nothing in here waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use super::API_VERSION;
use super::cards::Behaviour;
use super::error::Failure;
use super::kind::Kind;
use super::outbox::Outbox;

/// Most objects of one kind; then the simulator answers 500.
const OBJECTS_MAX: usize = 200_000;

/// What happens to a subscription whose invoice stays unpaid after the last try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterRetries {
    #[default]
    Cancel,
    Unpaid,
    PastDue,
}

/// What is due at a time. A timer that no longer fits its object's state is ignored when it fires.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Finalize(String),
    Collect(String),
    Upcoming(String),
    TrialWillEnd(String),
    Period(String),
    CancelAt(String),
    Incomplete(String),
    PendingUpdate(String),
    ResumeCollection(String),
    ExpireSession(String),
}

#[derive(Debug, Default)]
struct Table {
    rows: Vec<Value>,
    index: HashMap<String, usize>,
}

#[derive(Debug)]
pub(super) struct World {
    tables: BTreeMap<Kind, Table>,
    /// Unix seconds.
    pub now: i64,
    tag: String,
    serial: u64,
    pub timers: BTreeSet<(i64, u64, Timer)>,
    pub outbox: Outbox,
    /// Signing secrets by endpoint, newest last; all of them sign.
    pub secrets: HashMap<String, Vec<String>>,
    /// How charges of a customer go, whatever the card says.
    pub behaviours: HashMap<String, Behaviour>,
    pub after_retries: AfterRetries,
    /// Where the simulator is reached: `http://address`.
    pub base: String,
    /// Id and idempotency key of the API request being answered.
    pub request: Option<(String, Option<String>)>,
}

impl World {
    pub(super) fn new(now: i64, tag: String) -> World {
        World {
            tables: BTreeMap::new(),
            now,
            tag,
            serial: 0,
            timers: BTreeSet::new(),
            outbox: Outbox::default(),
            secrets: HashMap::new(),
            behaviours: HashMap::new(),
            after_retries: AfterRetries::default(),
            base: String::new(),
            request: None,
        }
    }

    pub(super) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// A new id: prefix, this simulator's tag, a running number.
    pub(super) fn id(&mut self, prefix: &str) -> String {
        let serial = self.serial();
        format!("{prefix}_{}{serial:08}", self.tag)
    }

    pub(super) fn new_id(&mut self, kind: Kind) -> String {
        self.id(kind.prefix())
    }

    pub(super) fn is_full(&self) -> bool {
        self.tables.values().any(|table| table.rows.len() >= OBJECTS_MAX)
    }

    /// Adds an object; its `id` must be new.
    pub(super) fn insert(&mut self, kind: Kind, object: Value) {
        let table = self.tables.entry(kind).or_default();
        let id = text(&object, "id").to_owned();
        if let Some(&at) = table.index.get(&id) {
            table.rows[at] = object;
        } else {
            table.index.insert(id, table.rows.len());
            table.rows.push(object);
        }
    }

    pub(super) fn get(&self, kind: Kind, id: &str) -> Option<&Value> {
        let table = self.tables.get(&kind)?;
        table.rows.get(*table.index.get(id)?)
    }

    /// A copy, or null.
    pub(super) fn copy(&self, kind: Kind, id: &str) -> Value {
        self.get(kind, id).cloned().unwrap_or_default()
    }

    /// For an id that a request names in `param` (`id`: the path).
    ///
    /// # Errors
    /// When there is none in this mode, or it was deleted and a parameter names it.
    pub(super) fn find(&self, kind: Kind, id: &str, is_live: bool, param: &str) -> Result<&Value, Failure> {
        let found = self.get(kind, id);
        let similar = found.filter(|object| live(object) != is_live).map(|_| if is_live { "test" } else { "live" });
        found
            .filter(|object| similar.is_none() && (param == "id" || object["deleted"] != true))
            .ok_or_else(|| Failure::no_such(kind.name(), id, param, similar))
    }

    pub(super) fn edit(&mut self, kind: Kind, id: &str, change: impl FnOnce(&mut Value)) {
        if let Some(table) = self.tables.get_mut(&kind)
            && let Some(object) = table.index.get(id).and_then(|&at| table.rows.get_mut(at))
        {
            change(object);
        }
    }

    /// In the order of creation.
    pub(super) fn all(&self, kind: Kind) -> impl DoubleEndedIterator<Item = &Value> {
        self.tables.get(&kind).into_iter().flat_map(|table| &table.rows)
    }

    /// Ids of those that `fits`.
    pub(super) fn ids(&self, kind: Kind, fits: impl Fn(&Value) -> bool) -> Vec<String> {
        self.all(kind).filter(|object| fits(object)).map(|object| text(object, "id").to_owned()).collect()
    }

    /// Changes an object and tells it, with what the changed fields were before.
    pub(super) fn touch(&mut self, kind: Kind, id: &str, event: &str, change: impl FnOnce(&mut Value)) {
        let before = self.copy(kind, id);
        self.edit(kind, id, change);
        let after = self.copy(kind, id);
        let mut previous = Map::new();
        for (name, value) in after.as_object().into_iter().flatten() {
            if !name.starts_with('_') && before[name] != *value {
                previous.insert(name.clone(), before[name].clone());
            }
        }
        let previous = event.ends_with(".updated").then_some(Value::Object(previous));
        self.emit(event, &after, previous);
    }

    /// Tells about an object as it is now.
    pub(super) fn tell(&mut self, kind: Kind, id: &str, event: &str) {
        let object = self.copy(kind, id);
        self.emit(event, &object, None);
    }

    /// Stores an event with a snapshot of `object` and queues its deliveries.
    pub(super) fn emit(&mut self, event: &str, object: &Value, previous: Option<Value>) -> String {
        let id = self.new_id(Kind::Event);
        let mut data = json!({ "object": super::present::plain(object) });
        if let Some(previous) = previous {
            data["previous_attributes"] = super::present::plain(&previous);
        }
        let (request, key) =
            self.request.clone().map_or((Value::Null, Value::Null), |(id, key)| (id.into(), key.into()));
        let is_live = live(object);
        let endpoints = self.listeners(event, is_live);
        self.insert(
            Kind::Event,
            json!({
                "id": id, "object": "event", "api_version": API_VERSION, "created": self.now, "data": data,
                "livemode": is_live, "pending_webhooks": endpoints.len(),
                "request": { "id": request, "idempotency_key": key }, "type": event,
            }),
        );
        self.outbox.queue(&id, event, &endpoints);
        id
    }

    fn listeners(&self, event: &str, is_live: bool) -> Vec<String> {
        self.ids(Kind::WebhookEndpoint, |endpoint| {
            let wanted = endpoint["enabled_events"].as_array().into_iter().flatten().any(|wanted| {
                wanted.as_str().is_some_and(|wanted| {
                    wanted == event || wanted.strip_suffix('*').is_some_and(|start| event.starts_with(start))
                })
            });
            wanted && endpoint["status"] == "enabled" && live(endpoint) == is_live
        })
    }

    pub(super) fn at(&mut self, time: i64, timer: Timer) {
        let serial = self.serial();
        self.timers.insert((time, serial, timer));
    }

    pub(super) fn behaviour_of(&self, customer: Option<&str>, method: &str) -> Behaviour {
        let of_customer = customer.and_then(|customer| self.behaviours.get(customer)).cloned();
        let of_card =
            || self.get(Kind::PaymentMethod, method).map(|method| Behaviour::parse(text(method, "_behaviour")));
        of_customer.or_else(of_card).unwrap_or_default()
    }
}

/// The mode of an object; some resources do not show theirs.
pub(super) fn live(object: &Value) -> bool {
    object["livemode"] == true || object["_live"] == true
}

/// A field that is a text, or an empty one.
pub(super) fn text<'v>(object: &'v Value, field: &str) -> &'v str {
    object[field].as_str().unwrap_or_default()
}

/// A field that is an id, expanded or not; empty when it is null.
pub(super) fn reference<'v>(object: &'v Value, field: &str) -> &'v str {
    object[field].as_str().or_else(|| object[field]["id"].as_str()).unwrap_or_default()
}

/// A field that is an integer, or 0.
pub(super) fn int(object: &Value, field: &str) -> i64 {
    object[field].as_i64().unwrap_or_default()
}

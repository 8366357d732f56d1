//! The plugins of a chain, as one exchange or connection finds them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use leno_api::model::wasm_plugin::{FailurePolicy, Phase, PluginType};
use leno_wasm_host::ContextId;

use super::{
    body::Lane,
    plugin::{Chain, Plugin},
    run::Failure,
    seat::{Seat, Seats},
};

/// One plugin of an exchange.
pub(super) struct Place {
    pub(super) plugin: Arc<Plugin>,
    pub(super) seat: Rc<Seat>,
    pub(super) phase: Phase,
    /// Its context, and of which instance.
    pub(super) context: Cell<Option<(u64, ContextId)>>,
    /// It failed, and the exchange goes on without it.
    pub(super) bypassed: Cell<bool>,
    /// Bodies of the request and the response.
    pub(super) lanes: [RefCell<Lane>; 2],
}

/// The plugins of a kind, up to the first that cannot run yet and must not be left out.
pub(super) fn places(
    seats: &Seats,
    chain: &Chain,
    kind: PluginType,
    random: impl Fn() -> u64,
) -> (Box<[Place]>, Option<(Phase, Failure)>) {
    let mut places = Vec::with_capacity(chain.slots().len());
    for slot in chain.slots().iter().filter(|slot| slot.kind() == kind) {
        match slot.choose(&random) {
            Ok(plugin) => {
                let seat = seats.seat(&plugin);
                places.push(Place::new(plugin, seat, slot.phase));
            }
            Err(unloaded) if unloaded.failure == FailurePolicy::Open => {}
            Err(unloaded) => {
                let failure = Failure::of(&unloaded.label, &unloaded.reason);
                return (places.into(), Some((slot.phase, failure)));
            }
        }
    }
    (places.into(), None)
}

impl Place {
    fn new(plugin: Arc<Plugin>, seat: Rc<Seat>, phase: Phase) -> Self {
        Self {
            plugin,
            seat,
            phase,
            context: Cell::new(None),
            bypassed: Cell::new(false),
            lanes: Default::default(),
        }
    }
}

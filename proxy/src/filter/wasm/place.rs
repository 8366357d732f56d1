//! The plugins of a chain, as one exchange or connection finds them.

use std::{cell::Cell, rc::Rc};

use leno_api::model::wasm_plugin::{FailurePolicy, Phase, PluginType};
use leno_wasm_host::{Action, ContextId, Instance};

use super::{
    body::Lane,
    host::ProxyHost,
    plugin::{Chain, Needs},
    run::Failure,
    seat::{Seat, Seats},
    state::Contents,
};

/// One plugin of an exchange.
pub(super) struct Place {
    pub(super) seat: Rc<Seat>,
    pub(super) phase: Phase,
    /// Its context, and of which instance.
    pub(super) context: Cell<Option<(u64, ContextId)>>,
    /// It failed, and the exchange goes on without it.
    pub(super) bypassed: Cell<bool>,
    /// Bodies of the request and the response.
    pub(super) lanes: [Lane; 2],
}

/// Those of an exchange in their order; most have one, which needs no room of its own.
#[derive(Default)]
pub(super) struct List {
    first: Option<Place>,
    others: Vec<Place>,
}

impl List {
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn get(&self, at: usize) -> Option<&Place> {
        match at.checked_sub(1) {
            None => self.first.as_ref(),
            Some(other) => self.others.get(other),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.first.iter().chain(&self.others)
    }

    fn push(&mut self, place: Place) {
        match &self.first {
            None => self.first = Some(place),
            Some(_) => self.others.push(place),
        }
    }
}

impl std::ops::Index<usize> for List {
    type Output = Place;

    #[expect(
        clippy::expect_used,
        reason = "as for any list, what is not in it must not be asked for"
    )]
    fn index(&self, at: usize) -> &Place {
        self.get(at).expect("one of the places")
    }
}

/// The plugins of a kind, up to the first that cannot run yet and must not be left out.
#[derive(Default)]
pub(super) struct Places {
    pub(super) places: List,
    /// The one that cannot run.
    pub(super) blocked: Option<(Phase, Failure)>,
    /// What any of them needs.
    pub(super) needs: Needs,
}

impl Places {
    pub(super) fn of(
        seats: &Seats,
        chain: &Chain,
        kind: PluginType,
        random: impl Fn() -> u64,
    ) -> Self {
        let mut found = Self::default();
        for slot in chain.slots().iter().filter(|slot| slot.kind() == kind) {
            match slot.choose(&random) {
                Ok(plugin) => {
                    found.needs = found.needs.or(plugin.needs);
                    found.places.push(Place::new(seats.seat(plugin), slot.phase));
                }
                Err(unloaded) if unloaded.failure == FailurePolicy::Open => {}
                Err(unloaded) => {
                    let failure = Failure::of(&unloaded.label, &unloaded.reason);
                    found.blocked = Some((slot.phase, failure));
                    break;
                }
            }
        }
        found
    }
}

impl Place {
    fn new(seat: Rc<Seat>, phase: Phase) -> Self {
        Self {
            seat,
            phase,
            context: Cell::new(None),
            bypassed: Cell::new(false),
            lanes: Default::default(),
        }
    }

    /// Takes what a plugin lets go of; `None` if it does not.
    pub(super) fn take_back<T>(
        &self,
        instance: &mut Instance<ProxyHost>,
        context: ContextId,
        action: Action,
        take: impl FnOnce(&mut Contents) -> Option<T>,
    ) -> Option<T> {
        if action != Action::Continue {
            return None;
        }
        let stream = instance.stream_mut(context)?;
        let taken = take(stream.contents(&self.seat.spare));
        stream.let_go(&self.seat.spare);
        taken
    }
}

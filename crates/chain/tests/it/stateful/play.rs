//! One play: the chain and the model take the same steps, and everything is compared after each.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use alloy_primitives::{Address, B256, Bytes, FixedBytes, U256};
use alloy_sol_types::SolEvent;

use super::{
    acts::{Act, Service, Step},
    compare::{compare_pair, compare_preview, compare_state, compare_views, same},
    generate::{Cast, Generator},
    invariants::{self, Books},
    machine::{Machine, Outcome, Puppet},
    model::Model,
    observe::Observed,
    probes,
    random::Random,
};

/// How often the expensive comparisons are made, in steps.
const VIEWS_EVERY: usize = 40;
const PROBES_EVERY: usize = 25;

/// What was reached, over many plays.
#[derive(Default)]
pub(crate) struct Coverage {
    pub(crate) steps: usize,
    pub(crate) accepted: usize,
    /// Functions that succeeded, by contract.
    pub(crate) functions: BTreeSet<(Address, FixedBytes<4>)>,
    pub(crate) events: BTreeSet<B256>,
    /// How often each error was raised.
    pub(crate) errors: BTreeMap<FixedBytes<4>, usize>,
    pub(crate) texts: BTreeSet<Bytes>,
    pub(crate) probes: probes::Tally,
}

/// The present state of both sides.
pub(crate) struct Play {
    pub(crate) machine: Machine,
    pub(crate) model: Model,
    pub(crate) cast: Cast,
    observed: Observed,
    books: Books,
    steps: usize,
    /// A copy on which a promise is tried: it is compared after each step as ever, but tries no promises itself.
    is_probe: bool,
}

impl Play {
    pub(crate) fn start(machine: &Machine) -> Self {
        let cast = Cast::new(machine);
        let everybody = cast.everybody();
        let model = Model::start(machine, cast.owner, &everybody);
        let observed = Observed::read(machine, &everybody).expect("a new chain can be read");
        Self {
            machine: machine.clone(),
            model,
            cast,
            observed,
            books: Books::default(),
            steps: 0,
            is_probe: false,
        }
    }

    /// Takes one step on both sides and compares them; says what is different.
    pub(crate) fn take(&mut self, step: &Step, coverage: &mut Coverage) -> Result<(), String> {
        self.steps += 1;
        let earlier = self.machine.clone();
        let reactions = invariants::possible_reactions(self.model.reactions());
        let outcome = self.carry_out(step);
        let expected = self.model.step(step);
        cover(coverage, &self.machine, step, &outcome);
        same!(&outcome.result, &expected.result, "the answer to {step:?}");
        same!(&outcome.logs, &expected.logs, "the logs of {step:?}");

        let everybody = self.cast.everybody();
        let observed = Observed::read(&self.machine, &everybody)?;
        compare_state(&observed, &self.model)?;
        invariants::check(
            &earlier,
            &self.observed,
            &observed,
            step,
            &reactions,
            &outcome.logs,
            &mut self.books,
        )?;
        self.observed = observed;
        if let Some((user, provider)) = touched_pair(step) {
            compare_pair(&self.machine, &self.model, user, provider)?;
        }
        if self.is_probe {
            return Ok(());
        }
        // The choice of pages depends on the position alone, so that a replay looks at the same ones.
        let mut random = Random(self.steps as u64);
        if self.steps.is_multiple_of(VIEWS_EVERY) {
            compare_views(&self.machine, &self.model, &everybody, &mut random)?;
            self.compare_previews(&mut random)?;
        }
        if self.steps.is_multiple_of(PROBES_EVERY) {
            probes::run(self, &mut random, &mut coverage.probes)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, step: &Step) -> Outcome {
        if let Step::Wait { seconds } = step {
            self.machine.wait(*seconds);
            return Outcome {
                result: Ok(Bytes::new()),
                logs: Vec::new(),
            };
        }
        let (from, to, value, data) = step
            .transaction(self.cast.driver, &self.machine)
            .expect("only waiting is no transaction");
        self.machine.transact(from, Some(to), value, data)
    }

    fn compare_previews(&self, random: &mut Random) -> Result<(), String> {
        for service in [Service::Inference, Service::SecondInference] {
            for &provider in &self.cast.providers {
                let mut generator = Generator {
                    random: &mut *random,
                    model: &self.model,
                    cast: &self.cast,
                };
                let items = generator.items(service, provider);
                compare_preview(&self.machine, &self.model, service, provider, &items)?;
            }
        }
        Ok(())
    }

    /// A copy that goes on alone.
    pub(crate) fn fork(&self) -> Self {
        Self {
            machine: self.machine.clone(),
            model: self.model.clone(),
            cast: self.cast.clone(),
            observed: self.observed.clone(),
            books: self.books.clone(),
            steps: 0,
            is_probe: true,
        }
    }

    /// Whether this play paid any provider.
    pub(crate) fn has_spent(&self) -> bool {
        self.books.spent > U256::ZERO
    }
}

/// The fine-tuning pair whose details a step may change.
fn touched_pair(step: &Step) -> Option<(Address, Address)> {
    let Step::Act { from, act } = step else {
        return None;
    };
    match act {
        Act::AddDeliverable { user, .. } | Act::AbandonDeliverable { user, .. } => {
            Some((*user, *from))
        }
        Act::SettleFees(claim) => Some((claim.user, *from)),
        Act::AcknowledgeDeliverable { provider, .. } | Act::TransferFund { provider, .. } => {
            Some((*from, *provider))
        }
        Act::RetrieveFund { providers, .. } => providers.first().map(|provider| (*from, *provider)),
        _ => None,
    }
}

/// Counts a refusal.
fn cover_error(coverage: &mut Coverage, data: &Bytes) {
    let Some(selector) = data.get(..4) else {
        return;
    };
    let selector = FixedBytes::from_slice(selector);
    *coverage.errors.entry(selector).or_default() += 1;
    // Error(string), whose texts are part of the interface.
    if *selector == [0x08, 0xc3, 0x79, 0xa0] {
        coverage.texts.insert(data.clone());
    }
}

fn cover(coverage: &mut Coverage, machine: &Machine, step: &Step, outcome: &Outcome) {
    coverage.steps += 1;
    coverage.events.extend(
        outcome
            .logs
            .iter()
            .filter_map(|log| log.topics().first().copied()),
    );
    match &outcome.result {
        Ok(_) => {
            coverage.accepted += 1;
            if let Step::Act { from, act } = step {
                let call = act.encode(*from, machine);
                if let (Some(to), Some(selector)) = (call.to, call.data.get(..4)) {
                    let selector = FixedBytes::from_slice(selector);
                    coverage.functions.insert((to, selector));
                }
            }
        }
        Err(data) => cover_error(coverage, data),
    }
    for log in &outcome.logs {
        if let Ok(reacted) = Puppet::Reacted::decode_log(log)
            && !reacted.ok
        {
            cover_error(coverage, &reacted.answer);
        }
    }
}

/// Where a list of steps fails, and why.
pub(crate) fn replay(
    machine: &Machine,
    steps: &[Step],
    coverage: &mut Coverage,
) -> Result<(), (usize, String)> {
    let mut play = Play::start(machine);
    for (index, step) in steps.iter().enumerate() {
        let taken = catch_unwind(AssertUnwindSafe(|| play.take(step, coverage)));
        match taken {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err((index, reason)),
            Err(_) => return Err((index, "a panic, printed above".to_owned())),
        }
    }
    Ok(())
}

/// A play of `length` random steps after `opening`; on failure the steps up to it, and the reason.
pub(crate) fn random_play(
    machine: &Machine,
    seed: u64,
    length: usize,
    opening: &[Step],
    coverage: &mut Coverage,
) -> Result<bool, (Vec<Step>, String)> {
    let mut play = Play::start(machine);
    let mut random = Random(seed);
    let mut steps = Vec::new();
    for index in 0..opening.len() + length {
        let step = match opening.get(index) {
            Some(step) => step.clone(),
            None => Generator {
                random: &mut random,
                model: &play.model,
                cast: &play.cast,
            }
            .step(),
        };
        steps.push(step.clone());
        match catch_unwind(AssertUnwindSafe(|| play.take(&step, coverage))) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Err((steps, reason)),
            Err(_) => return Err((steps, "a panic, printed above".to_owned())),
        }
    }
    Ok(play.has_spent())
}

/// The shortest list found that still fails, by leaving out ever smaller parts in at most `replays` tries; the reason
/// of its failure.
pub(crate) fn shrink(
    machine: &Machine,
    steps: Vec<Step>,
    reason: String,
    mut replays: usize,
) -> (Vec<Step>, String) {
    let mut best = (steps, reason);
    let fails = |steps: &[Step]| replay(machine, steps, &mut Coverage::default()).err();
    let mut part = best.0.len().div_ceil(2);
    while part > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < best.0.len() {
            let end = (start + part).min(best.0.len());
            let without: Vec<Step> = [&best.0[..start], &best.0[end..]].concat();
            if replays == 0 {
                return best;
            }
            replays -= 1;
            if let Some((index, reason)) = fails(&without) {
                best = (without[..=index].to_vec(), reason);
                shorter = true;
            } else {
                start = end;
            }
        }
        if !shorter {
            part /= 2;
        }
    }
    best
}

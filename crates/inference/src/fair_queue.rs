//! Requests that wait, by flow: whoever has been served least comes next.
//!
//! A flow is an adapter, or whatever the caller says. Each flow has a counter of the tokens that were computed for it,
//! and the flow with the smallest counter is admitted next, so that many requests for one adapter cannot hold up one
//! request for another (Sheng et al. 2024, "Fairness in Serving Large Language Models"). A flow that was away starts at
//! the counter of the least served present one: idling earns nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Flows whose counters are remembered after they have gone.
const MAX_REMEMBERED: usize = 4096;

/// A queue of things that belong to flows.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    /// What goes before everything else, in order.
    first: VecDeque<T>,
    flows: HashMap<Arc<str>, Flow<T>>,
    arrivals: u64,
    length: usize,
}

#[derive(Debug)]
struct Flow<T> {
    /// With the number of its arrival.
    waiting: VecDeque<(u64, T)>,
    /// Waiting and running.
    present: usize,
    served: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            first: VecDeque::new(),
            flows: HashMap::new(),
            arrivals: 0,
            length: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// Number of waiting things.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds something at the end of its flow. The flow counts it as present until [`FairQueue::gone`].
    pub(crate) fn push(&mut self, flow: &Arc<str>, item: T) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        self.enter(flow).waiting.push_back((arrival, item));
        self.length += 1;
    }

    /// Gives something back that was taken and is still present: it goes before everything else.
    pub(crate) fn put_back(&mut self, item: T) {
        self.first.push_front(item);
        self.length += 1;
    }

    /// The next one.
    pub(crate) fn peek(&self) -> Option<&T> {
        if let Some(item) = self.first.front() {
            return Some(item);
        }
        let flow = self.flows.get(self.next_flow()?)?;
        flow.waiting.front().map(|entry| &entry.1)
    }

    /// Takes the next one.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = match self.first.pop_front() {
            Some(item) => item,
            None => {
                let name = Arc::clone(self.next_flow()?);
                self.flows.get_mut(&name)?.waiting.pop_front()?.1
            }
        };
        self.length -= 1;
        Some(item)
    }

    /// Adds to the counter of a flow.
    pub(crate) fn charge(&mut self, flow: &Arc<str>, tokens: u64) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.served = flow.served.saturating_add(tokens);
        }
    }

    /// Something of this flow has begun without waiting.
    pub(crate) fn joined(&mut self, flow: &Arc<str>) {
        self.enter(flow);
    }

    /// Something of this flow has ended.
    pub(crate) fn gone(&mut self, flow: &Arc<str>) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.present = flow.present.saturating_sub(1);
        }
        if self.flows.len() > MAX_REMEMBERED {
            self.flows.retain(|_, flow| flow.present > 0);
        }
    }

    /// Drops everything that is not wanted any more and hands it out.
    pub(crate) fn remove_if(&mut self, mut unwanted: impl FnMut(&mut T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        let mut keep = VecDeque::with_capacity(self.first.len());
        for mut item in self.first.drain(..) {
            if unwanted(&mut item) {
                removed.push(item);
            } else {
                keep.push_back(item);
            }
        }
        self.first = keep;
        for flow in self
            .flows
            .values_mut()
            .filter(|flow| !flow.waiting.is_empty())
        {
            let mut keep = VecDeque::with_capacity(flow.waiting.len());
            for (arrival, mut item) in flow.waiting.drain(..) {
                if unwanted(&mut item) {
                    removed.push(item);
                } else {
                    keep.push_back((arrival, item));
                }
            }
            flow.waiting = keep;
        }
        self.length -= removed.len();
        removed
    }

    fn enter(&mut self, name: &Arc<str>) -> &mut Flow<T> {
        let least = self
            .flows
            .values()
            .filter(|flow| flow.present > 0)
            .map(|flow| flow.served)
            .min();
        let flow = self.flows.entry(Arc::clone(name)).or_insert_with(|| Flow {
            waiting: VecDeque::new(),
            present: 0,
            served: 0,
        });
        if flow.present == 0 {
            flow.served = flow.served.max(least.unwrap_or(0));
        }
        flow.present += 1;
        flow
    }

    fn next_flow(&self) -> Option<&Arc<str>> {
        self.flows
            .iter()
            .filter_map(|(name, flow)| Some((flow.served, flow.waiting.front()?.0, name)))
            .min_by_key(|(served, arrival, _)| (*served, *arrival))
            .map(|entry| entry.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn the_least_served_flow_comes_next() {
        let mut queue = FairQueue::default();
        let (a, b) = (flow("a"), flow("b"));
        for number in 0..4 {
            queue.push(&a, ("a", number));
        }
        queue.push(&b, ("b", 0));
        let mut order = Vec::new();
        while let Some((name, number)) = queue.pop() {
            order.push(format!("{name}{number}"));
            queue.charge(if name == "a" { &a } else { &b }, 10);
        }
        assert_eq!(order, ["a0", "b0", "a1", "a2", "a3"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_newcomer_neither_waits_for_the_past_nor_profits_from_it() {
        let mut queue = FairQueue::default();
        let (a, b) = (flow("a"), flow("b"));
        queue.push(&a, 1);
        queue.pop();
        queue.charge(&a, 1_000);
        queue.push(&b, 2);
        queue.push(&a, 3);
        assert_eq!(queue.pop(), Some(2));
        queue.charge(&b, 1);
        queue.push(&b, 4);
        // Both stand at about 1,000 now: b may not be served a thousand tokens ahead.
        assert_eq!(queue.pop(), Some(3));
        queue.put_back(9);
        assert_eq!((queue.peek(), queue.len()), (Some(&9), 2));
        assert_eq!(queue.remove_if(|item| *item == 4), [4]);
        assert_eq!((queue.pop(), queue.pop()), (Some(9), None));
    }
}

//! The threads of an engine on the processor.

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};
use std::sync::atomic::{AtomicBool, Ordering};

/// A thread pool in which one step runs at a time, and whose threads stay awake while it does.
///
/// A step is some hundred products with little between them. A thread that falls asleep there is woken later than its
/// part of a small product takes.
#[derive(Debug)]
pub(crate) struct StepThreads(Option<ThreadPool>);

impl StepThreads {
    /// As many threads as the common pool has; that pool itself where the system gives no more.
    pub(crate) fn new() -> Self {
        let builder = ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|number| format!("inference-{number}"));
        Self(builder.build().ok())
    }

    /// Runs a step. Nothing else may run in this pool: a thread that keeps awake takes whatever there is to do, so work
    /// that waits for it would wait until the step ends.
    pub(crate) fn run<T: Send>(&mut self, step: impl FnOnce() -> T + Send) -> T {
        let Some(pool) = &self.0 else {
            return step();
        };
        let is_done = AtomicBool::new(false);
        pool.scope(|scope| {
            // Those who look for work take the oldest, so these begin before any part of the step.
            for _ in 1..pool.current_num_threads() {
                scope.spawn(|_| {
                    while !is_done.load(Ordering::Acquire) {
                        if rayon::yield_now() != Some(Yield::Executed) {
                            // Other programs come first.
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let _done = SetOnDrop(&is_done);
            step()
        })
    }
}

/// Ends the waiting of the other threads, even when the step panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn steps_end_with_their_results_one_after_the_other_and_after_a_panic() {
        let mut threads = StepThreads::new();
        for step in 0..200_u64 {
            let sum: u64 = threads.run(|| {
                let part = |number: u64| (0..100_u64).into_par_iter().map(|one| one * number).sum();
                let parts: Vec<u64> = (0..20).map(part).collect();
                parts.into_iter().sum::<u64>() + step
            });
            assert_eq!(sum, 4950 * 190 + step);
        }
        let panicking = std::panic::AssertUnwindSafe(|| threads.run(|| panic!("a step fails")));
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(threads.run(|| 7), 7);
    }
}

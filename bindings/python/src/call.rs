//! How a call of the SDK is waited for: on the runtime's threads, without the interpreter lock.
//!
//! Without a waiter the calling thread blocks. It hands out progress itself, so that callbacks run where the call was
//! made, and looks for signals ten times a second, so that Ctrl-C ends any call. With a waiter the call returns at once
//! with a [`Pending`], and the waiter is called as `waiter(result, error)` from a thread of the runtime.

use std::future::Future;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Runtime;
use tokio::task::{AbortHandle, JoinHandle};

use crate::convert::ToPython;
use crate::error::native_error;

/// What every method returns: the result, or a [`Pending`].
pub(crate) type Answer = PyResult<Py<PyAny>>;
/// A callable that takes result and error; none: the call blocks.
pub(crate) type Waiter = Option<Py<PyAny>>;

/// Pause between two looks for signals.
const SIGNAL_POLL: Duration = Duration::from_millis(100);

/// The runtime, and the process that it belongs to: threads do not survive a fork.
static RUNTIME: Mutex<Option<(u32, Arc<Runtime>)>> = Mutex::new(None);

fn runtime() -> PyResult<Arc<Runtime>> {
    let process = std::process::id();
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, runtime)) = slot.take() {
        if owner == process {
            *slot = Some((owner, Arc::clone(&runtime)));
            return Ok(runtime);
        }
        // It would wait for threads that only the parent has.
        std::mem::forget(runtime);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("zerog-sdk")
        .enable_all()
        .build()?;
    let runtime = Arc::new(runtime);
    *slot = Some((process, Arc::clone(&runtime)));
    Ok(runtime)
}

/// What the calling thread does next: hand news to a callable (none), or return the result (some).
type Delivery = Box<dyn FnOnce(Python<'_>) -> PyResult<Option<Py<PyAny>>> + Send>;

/// One call of the SDK.
pub(crate) struct Call {
    waiter: Waiter,
    queue: Sender<Delivery>,
    deliveries: Receiver<Delivery>,
}

impl Call {
    pub(crate) fn new(waiter: Waiter) -> Self {
        let (queue, deliveries) = channel();
        Self {
            waiter,
            queue,
            deliveries,
        }
    }

    /// What hands values to `function` while the call runs.
    pub(crate) fn callback(&self, function: Option<Py<PyAny>>) -> Callback {
        Callback {
            function: function.map(Arc::new),
            queue: self.waiter.is_none().then(|| self.queue.clone()),
        }
    }

    /// Runs the future; see the module's document.
    pub(crate) fn run<T, F>(self, py: Python<'_>, future: F) -> Answer
    where
        F: Future<Output = Result<T, zerog_sdk::Error>> + Send + 'static,
        T: ToPython + Send + 'static,
    {
        let runtime = runtime()?;
        match self.waiter {
            Some(waiter) => start(py, &runtime, waiter, future),
            None => {
                let queue = self.queue;
                let task = runtime.spawn(async move {
                    let outcome = future.await;
                    // Nobody listens any more when the call was interrupted.
                    let _ = queue.send(Box::new(move |py| finished(py, outcome).map(Some)));
                });
                wait(py, &task, self.deliveries)
            }
        }
    }
}

/// Hands values to a Python callable, if there is one.
#[derive(Clone)]
pub(crate) struct Callback {
    function: Option<Arc<Py<PyAny>>>,
    /// None: the callable takes care of threads itself.
    queue: Option<Sender<Delivery>>,
}

impl Callback {
    pub(crate) fn tell(&self, value: impl ToPython + Send + 'static) {
        let Some(function) = self.function.clone() else {
            return;
        };
        let deliver = move |py: Python<'_>| {
            let value = value.to_python(py)?;
            function.call1(py, (value,)).map(drop)
        };
        match &self.queue {
            Some(queue) => {
                let _ = queue.send(Box::new(move |py| deliver(py).map(|()| None)));
            }
            None => {
                Python::try_attach(|py| {
                    if let Err(error) = deliver(py) {
                        error.write_unraisable(py, None);
                    }
                });
            }
        }
    }
}

/// A call that goes on in the background.
#[pyclass(frozen)]
pub(crate) struct Pending {
    task: AbortHandle,
}

#[pymethods]
impl Pending {
    /// Stops the work; the waiter is not called any more.
    fn cancel(&self) {
        self.task.abort();
    }
}

fn start<T, F>(py: Python<'_>, runtime: &Runtime, waiter: Py<PyAny>, future: F) -> Answer
where
    F: Future<Output = Result<T, zerog_sdk::Error>> + Send + 'static,
    T: ToPython + Send + 'static,
{
    let work = runtime.spawn(future);
    let pending = Pending {
        task: work.abort_handle(),
    };
    runtime.spawn(async move {
        let outcome = match work.await {
            Err(error) if error.is_cancelled() => return,
            other => other,
        };
        Python::try_attach(|py| {
            let finished = outcome.map_or_else(|_| Err(died()), |outcome| finished(py, outcome));
            let arguments = match finished {
                Ok(result) => (result, py.None()),
                Err(error) => (py.None(), error.into_value(py).into_any()),
            };
            if let Err(error) = waiter.call1(py, arguments) {
                error.write_unraisable(py, None);
            }
        });
    });
    Ok(Bound::new(py, pending)?.into_any().unbind())
}

fn wait(py: Python<'_>, task: &JoinHandle<()>, mut deliveries: Receiver<Delivery>) -> Answer {
    let failure = loop {
        // Exclusive, because a receiver may go to other threads but not be shared with them.
        let receiver = &mut deliveries;
        match py.detach(move || receiver.recv_timeout(SIGNAL_POLL)) {
            Ok(deliver) => match deliver(py) {
                Ok(Some(result)) => return Ok(result),
                Ok(None) => {}
                Err(error) => break error,
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break died(),
        }
        if let Err(error) = py.check_signals() {
            break error;
        }
    };
    // The work has stopped before the caller starts something else. A failed call is over already.
    task.abort();
    py.detach(|| {
        while !task.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Err(failure)
}

fn finished<T: ToPython>(py: Python<'_>, outcome: Result<T, zerog_sdk::Error>) -> Answer {
    match outcome {
        Ok(value) => Ok(value.to_python(py)?.unbind()),
        Err(error) => Err(native_error(py, &error)),
    }
}

fn died() -> PyErr {
    PyRuntimeError::new_err("the call ended by a defect of the SDK; see standard error")
}

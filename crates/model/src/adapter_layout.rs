//! Where an adapter's tensors belong: the modules that can have one and their names in PEFT files.

use crate::classifier_config::{ClassifierConfig, ENCODER_LINEARS};
use crate::config::ModelConfig;
use crate::lora::Projection;

/// What PEFT puts before the name of a module.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The adaptable modules of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    /// `task_type` of the configuration.
    pub(crate) task_type: &'static str,
    /// What stands before the number of a layer, for example `model.layers.`.
    pub(crate) layer_prefix: &'static str,
    /// Layers.
    pub(crate) layers: usize,
    /// Linear layers of each layer.
    pub(crate) modules: Vec<Module>,
    /// Modules that are trained whole and stored beside the adapter, in order: name, outputs, inputs. `outputs` is
    /// `None` where it is the number of classes.
    pub(crate) head: Vec<HeadModule>,
}

/// A linear layer of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Module {
    pub(crate) projection: Projection,
    /// The name in `target_modules`.
    pub(crate) name: &'static str,
    /// The path below the layer, for example `self_attn.q_proj`.
    pub(crate) path: &'static str,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

/// A linear layer behind the last layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HeadModule {
    pub(crate) name: &'static str,
    pub(crate) outputs: Option<usize>,
    pub(crate) inputs: usize,
    /// Whether an adapter without it is complete.
    pub(crate) is_optional: bool,
}

impl Layout {
    pub(crate) fn module(&self, projection: Projection) -> Option<&Module> {
        self.modules
            .iter()
            .find(|module| module.projection == projection)
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// The name of a linear layer in the model's own files, without `.weight`.
    pub(crate) fn module_path(&self, layer: usize, module: &Module) -> String {
        format!("{}{layer}.{}", self.layer_prefix, module.path)
    }
}

impl ModelConfig {
    /// The seven linear layers of every decoder layer.
    pub(crate) fn layout(&self) -> Layout {
        let modules = Projection::ALL.map(|projection| {
            let (outputs, inputs) = self.projection_shape(projection);
            Module {
                projection,
                name: projection.name(),
                path: projection.path(),
                outputs,
                inputs,
            }
        });
        Layout {
            task_type: "CAUSAL_LM",
            layer_prefix: "model.layers.",
            layers: self.layers,
            modules: modules.to_vec(),
            head: Vec::new(),
        }
    }
}

impl ClassifierConfig {
    /// The six linear layers of every encoder layer, and the two of the head.
    pub(crate) fn layout(&self) -> Layout {
        let modules = ENCODER_LINEARS.map(|projection| {
            let (outputs, inputs) = self.projection_shape(projection);
            let (name, path) = match projection {
                Projection::Query => ("q_lin", "attention.q_lin"),
                Projection::Key => ("k_lin", "attention.k_lin"),
                Projection::Value => ("v_lin", "attention.v_lin"),
                Projection::Output => ("out_lin", "attention.out_lin"),
                Projection::Up | Projection::Gate => ("lin1", "ffn.lin1"),
                Projection::Down => ("lin2", "ffn.lin2"),
            };
            Module {
                projection,
                name,
                path,
                outputs,
                inputs,
            }
        });
        Layout {
            task_type: "SEQ_CLS",
            layer_prefix: "distilbert.transformer.layer.",
            layers: self.layers,
            modules: modules.to_vec(),
            head: vec![
                HeadModule {
                    name: "pre_classifier",
                    outputs: Some(self.hidden_size),
                    inputs: self.hidden_size,
                    is_optional: true,
                },
                HeadModule {
                    name: "classifier",
                    outputs: None,
                    inputs: self.hidden_size,
                    is_optional: false,
                },
            ],
        }
    }
}

//! Parts of random acts: who, where, how much, which id.

use alloy_primitives::{Address, U256};
use zerog_devchain::accounts::ACCOUNTS;

use super::{
    acts::{Contract, Service, Text},
    claims::Signing,
    generate::{Generator, SIGNERS},
    model::Life,
};
use crate::support::{milli, og};

impl Generator<'_> {
    pub(super) fn user(&mut self) -> Address {
        if self.random.percent(4) {
            return self.provider();
        }
        self.random.pick(&self.cast.users)
    }

    pub(super) fn provider(&mut self) -> Address {
        if self.random.percent(2) {
            return self.anybody();
        }
        self.random.pick(&self.cast.providers)
    }

    pub(super) fn anybody(&mut self) -> Address {
        let mut all = self.cast.everybody();
        all.retain(|address| *address != self.cast.driver);
        self.random.pick(&all)
    }

    pub(super) fn service(&mut self) -> Service {
        self.random.pick(&[
            Service::FineTuning,
            Service::FineTuning,
            Service::Inference,
            Service::Inference,
            Service::SecondInference,
        ])
    }

    pub(super) fn inference(&mut self) -> Service {
        let second = self.random.percent(15);
        if second {
            Service::SecondInference
        } else {
            Service::Inference
        }
    }

    pub(super) fn contract(&mut self) -> Contract {
        if self.random.percent(30) {
            return Contract::Ledger;
        }
        Contract::Serving(self.service())
    }

    pub(super) fn kind(&mut self) -> String {
        self.random
            .pick(&["inference", "inference", "fine-tuning", ""])
            .to_owned()
    }

    pub(super) fn version(&mut self) -> String {
        self.random.pick(&["v1.0", "v2.0", "v2.0", ""]).to_owned()
    }

    pub(super) fn service_name(&mut self) -> String {
        let names = [
            "fine-tuning-v1.0",
            "fine-tuning-v1.0",
            "fine-tuning-v1.0",
            "inference-v1.0",
            "inference-v1.0",
            "inference-v1.0",
            "inference-v2.0",
        ];
        if self.random.percent(1) {
            return "inference".to_owned();
        }
        self.random.pick(&names).to_owned()
    }

    pub(super) fn pairs(
        &self,
        service: Service,
        keep: impl Fn((Address, Address)) -> bool,
    ) -> Vec<(Address, Address)> {
        let pairs = self.model.serving(service).pairs.iter().copied();
        pairs.filter(|pair| keep(*pair)).collect()
    }

    pub(super) fn retrieved(&mut self, user: Address) -> Vec<Address> {
        match self.random.below(12) {
            0 => Vec::new(),
            1 => vec![self.provider(); 2],
            2 => vec![user; 51],
            3..6 => vec![self.provider()],
            _ => {
                let mut all = self.cast.providers.clone();
                all.extend((0..3).map(|index| Address::repeat_byte(0xb0 + index)));
                all
            }
        }
    }

    /// 0, one neuron, a hint or its neighbours, or some thousandths of a coin.
    pub(super) fn amount(&mut self, hints: &[U256]) -> U256 {
        let hint = self.random.maybe_pick(hints).unwrap_or(og(1));
        match self.random.below(20) {
            0 => U256::ZERO,
            1 => U256::from(1),
            2 => hint.saturating_sub(U256::from(1)),
            3 => hint.saturating_add(U256::from(1)),
            4..9 => hint,
            _ => milli(self.random.below(4_000)),
        }
    }

    pub(super) fn refund_amount(&mut self, user: Address) -> U256 {
        let record = self.model.ledger.records.get(&user);
        let available = record.map_or(og(1), |record| record.available);
        self.amount(&[available, available, available.saturating_sub(og(3))])
    }

    pub(super) fn nonce(&mut self, last: U256) -> U256 {
        match self.random.below(30) {
            0 => last,
            1 => last.saturating_sub(U256::from(1)),
            2 => last + U256::from(1_000_000),
            _ => last + U256::from(1 + self.random.below(3)),
        }
    }

    pub(super) fn signing(&mut self) -> Signing {
        if self.random.percent(90) {
            return Signing::Honest;
        }
        self.random.pick(&[
            Signing::OverAnotherFee,
            Signing::OverAnotherUser,
            Signing::ForAnotherContract,
            Signing::HighS,
            Signing::LowV,
            Signing::Compact,
            Signing::Empty,
        ])
    }

    /// Account whose key is `signer`'s; sometimes the other one.
    pub(super) fn signer(&mut self, signer: Option<Address>) -> usize {
        let fits = SIGNERS
            .into_iter()
            .find(|index| Some(ACCOUNTS[*index].address) == signer);
        match fits {
            Some(index) if self.random.percent(96) => index,
            _ => self.random.pick(&SIGNERS),
        }
    }

    pub(super) fn info(&mut self) -> Text {
        match self.random.below(20) {
            0 => Text('n', 4097),
            1 => Text('n', 4096),
            2..6 => Text('n', 70),
            _ => Text::EMPTY,
        }
    }

    pub(super) fn life(&self, user: Address, provider: Address) -> Option<&Life> {
        self.model.serving(Service::FineTuning).life(user, provider)
    }

    /// An id that the pair has, mostly the newest, or one that it has not.
    pub(super) fn known_id(&mut self, user: Address, provider: Address) -> Text {
        let ids: Vec<String> = self.life(user, provider).map_or_else(Vec::new, |life| {
            life.deliverables
                .list
                .iter()
                .map(|deliverable| deliverable.id.clone())
                .collect()
        });
        let id = match ids.last() {
            Some(newest) if self.random.percent(75) => newest.clone(),
            Some(_) if self.random.percent(90) => self.random.pick(&ids),
            _ => return Text('z', 1),
        };
        Text(id.chars().next().unwrap_or('z'), id.len())
    }

    pub(super) fn new_id(&mut self, user: Address, provider: Address) -> Text {
        match self.random.below(60) {
            0 => return Text('o', 257),
            1 => return Text::EMPTY,
            2 => return Text('o', 256),
            3 => return self.known_id(user, provider),
            _ => {}
        }
        Text(
            self.random.pick(&['a', 'b', 'c', 'd', 'e', 'f']),
            1 + self.random.below(40) as usize,
        )
    }

    pub(super) fn seconds(&mut self) -> u64 {
        let lock = self.model.serving(Service::FineTuning).lock_time;
        let window = self.model.serving(Service::FineTuning).ack_window;
        match self.random.below(10) {
            0 => 1,
            1 => 60,
            2 => lock - 1,
            3..6 => lock,
            6 => lock / 2,
            7 => window,
            _ => self.random.below(7_200),
        }
    }
}

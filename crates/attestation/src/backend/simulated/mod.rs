//! A TEE for development: quotes of the real format, really signed, under a root that proves nothing.
//!
//! Every quote says so inside its signed part (header user data, DEBUG attribute, key-provider event) and outside it
//! (`"simulated": true`, response header). Measurements and keys are consistent, so the verifier runs the same code
//! as for hardware, with another root.

mod der;
mod pki;

use serde_json::json;
use zeroize::Zeroizing;

use super::{BackendError, TeeBackend, TeeKind};
use crate::bundle::{QuoteBundle, RECIPIENT_KEY_FORMATS, SEALING_FORMATS};
use crate::event_log::{self, Event};
use crate::keys::derive_path_key;
use crate::quote::SIMULATED_USER_DATA;
use crate::{Collateral, Measurement, sha256, sha384};

pub use pki::NAME_MARK;

/// The chain on which a simulated TEE is always refused: 0G mainnet.
pub const MAINNET_CHAIN_ID: u64 = 16661;

/// DEBUG and SEPT_VE_DISABLE. The first marks the quote as worthless; without the second no verifier reads on.
const TD_ATTRIBUTES: [u8; 8] = [0x01, 0, 0, 0x10, 0, 0, 0, 0];
const QE_VENDOR_ID: [u8; 16] = dcap_qvl::INTEL_QE_VENDOR_ID;

/// What identifies one simulated enclave.
#[derive(Clone)]
pub struct SimulatedOptions {
    seed: Zeroizing<[u8; 32]>,
    name: String,
    image: String,
}

impl SimulatedOptions {
    /// An enclave whose keys come from `seed`. Keep the seed in a file only the provider reads: whoever has it has
    /// the signer key.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            seed: Zeroizing::new(seed),
            name: "zerog-provider".into(),
            // Without a digest, so that nobody takes it for a pinned image.
            image: "zerog/provider".into(),
        }
    }

    /// Application name in the compose text.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// SHA-256 of the running program, which takes the place of an image digest in the compose text.
    #[must_use]
    pub fn program_sha256(mut self, digest: [u8; 32]) -> Self {
        self.image = format!("zerog/provider@sha256:{}", hex::encode(digest));
        self
    }
}

impl std::fmt::Debug for SimulatedOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedOptions")
            .field("name", &self.name)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// The development back-end. See the module documentation for what it does not prove.
pub struct Simulated {
    application_key: Zeroizing<[u8; 32]>,
    app_compose: String,
    events: Vec<Event>,
    rtmr: [Measurement; 4],
}

impl Simulated {
    /// Builds the enclave. The same options give the same keys and measurements.
    pub fn new(options: SimulatedOptions) -> Self {
        let compose_file = format!("services:\n  provider:\n    image: {}\n", options.image);
        let app_compose = json!({
            "manifest_version": 2, "name": options.name, "runner": "docker-compose",
            "docker_compose_file": compose_file, "kms_enabled": false, "gateway_enabled": false,
            "public_logs": false, "public_sysinfo": false, "public_tcbinfo": true, "allowed_envs": [],
            "no_instance_id": false, "secure_time": false, "key_provider": "simulated",
        })
        .to_string();
        let compose_hash = sha256(app_compose.as_bytes());
        let app_id: Vec<u8> = compose_hash.into_iter().take(20).collect();
        let instance_id: Vec<u8> = sha256(&[b"instance:".as_slice(), &app_id].concat())
            .into_iter()
            .take(20)
            .collect();
        let labels = ["SIMULATED-RTMR0", "SIMULATED-RTMR1", "SIMULATED-RTMR2"];
        let mut events: Vec<Event> = (0u32..)
            .zip(labels)
            .map(|(imr, label)| Event {
                imr,
                event_type: 4,
                digest: hex::encode(sha384(label.as_bytes())),
                event: String::new(),
                event_payload: hex::encode(label),
                version: None,
                preimage: None,
            })
            .collect();
        let key_provider = json!({"name": "simulated", "id": ""}).to_string();
        let runtime: [(&str, &[u8]); 7] = [
            ("system-preparing", b""),
            ("app-id", &app_id),
            ("compose-hash", &compose_hash),
            ("instance-id", &instance_id),
            ("boot-mr-done", b""),
            ("key-provider", key_provider.as_bytes()),
            (event_log::SYSTEM_READY, b""),
        ];
        events.extend(
            runtime
                .iter()
                .map(|(name, payload)| Event::runtime(name, payload)),
        );
        let rtmr =
            event_log::replay(&events).expect("events made here have digests that belong to them");
        let application_key = derive_path_key(&options.seed, "zerog simulated application key");
        Self {
            application_key,
            app_compose,
            events,
            rtmr,
        }
    }

    /// Refuses to stand in for hardware where real money is.
    ///
    /// # Errors
    /// [`BackendError::SimulatedOnMainnet`].
    pub fn check_chain(chain_id: u64) -> Result<(), BackendError> {
        if chain_id == MAINNET_CHAIN_ID {
            Err(BackendError::SimulatedOnMainnet { chain_id })
        } else {
            Ok(())
        }
    }

    /// SHA-256 of the compose text, as in the `compose-hash` event.
    pub fn compose_hash(&self) -> [u8; 32] {
        sha256(self.app_compose.as_bytes())
    }

    fn mr_config_id(&self) -> Measurement {
        let mut register = [0u8; 48];
        for (place, byte) in register
            .iter_mut()
            .zip(std::iter::once(1).chain(self.compose_hash()))
        {
            *place = byte;
        }
        register
    }

    fn signed_part(&self, report_data: &[u8; 64]) -> Vec<u8> {
        let zero = [0u8; 48];
        let header: [&[u8]; 7] = [
            &4u16.to_le_bytes(),
            &2u16.to_le_bytes(),
            &0x81u32.to_le_bytes(),
            &0u16.to_le_bytes(),
            &0u16.to_le_bytes(),
            &QE_VENDOR_ID,
            SIMULATED_USER_DATA,
        ];
        let [rtmr0, rtmr1, rtmr2, rtmr3] = &self.rtmr;
        let (mrtd, mr_config_id) = (simulated_mrtd(), self.mr_config_id());
        let body: [&[u8]; 15] = [
            &[0; 16], // security versions of the TEE
            &zero,    // TDX module
            &zero,    // its signer: Intel's is all zero
            &[0; 8],  // its attributes
            &TD_ATTRIBUTES,
            &[0; 8], // extended features
            &mrtd,
            &mr_config_id,
            &zero, // owner
            &zero, // owner configuration
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            report_data,
        ];
        [header.concat(), body.concat()].concat()
    }

    fn tcb_info(&self) -> String {
        let [rtmr0, rtmr1, rtmr2, rtmr3] = self.rtmr.map(hex::encode);
        json!({
            "mrtd": hex::encode(simulated_mrtd()), "rtmr0": rtmr0, "rtmr1": rtmr1, "rtmr2": rtmr2, "rtmr3": rtmr3,
            "mr_aggregated": hex::encode(self.mr_aggregated()),
            "os_image_hash": hex::encode(simulated_os_image()),
            "compose_hash": hex::encode(self.compose_hash()),
            "device_id": hex::encode(sha256(b"SIMULATED-DEVICE")),
            "event_log": self.events,
            "app_compose": self.app_compose,
        })
        .to_string()
    }

    fn mr_aggregated(&self) -> [u8; 32] {
        let mut joined = simulated_mrtd().to_vec();
        joined.extend(self.rtmr.iter().flatten());
        joined.extend(self.mr_config_id());
        joined.extend([0u8; 96]);
        sha256(&joined)
    }
}

impl TeeBackend for Simulated {
    fn kind(&self) -> TeeKind {
        TeeKind::Simulated
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<QuoteBundle, BackendError> {
        let pki = pki::DevelopmentPki::get();
        let attestation_key =
            pki::deterministic_key(self.application_key.as_slice(), "attestation");
        let attestation_point = pki::public_point(&attestation_key);
        let auth_data = [0u8; 32];
        let qe_report =
            quoting_enclave_report(&sha256(&[&attestation_point[..], &auth_data].concat()));
        let chain = pki.pck_chain_pem().as_bytes();
        let certification: [&[u8]; 7] = [
            &qe_report,
            &pki.sign_as_platform(&qe_report),
            &length16(&auth_data),
            &auth_data,
            &5u16.to_le_bytes(),
            &length32(chain),
            chain,
        ];
        let certification = certification.concat();
        let signed = self.signed_part(report_data);
        let signature_data: [&[u8]; 5] = [
            &pki::raw_signature(&attestation_key, &signed),
            &attestation_point,
            &6u16.to_le_bytes(),
            &length32(&certification),
            &certification,
        ];
        let signature_data = signature_data.concat();
        let quote = [signed, length32(&signature_data).to_vec(), signature_data].concat();
        Ok(QuoteBundle {
            quote,
            event_log: serde_json::to_string(&self.events).expect("events are plain strings and numbers"),
            report_data: *report_data,
            vm_config: json!({
                "os_image_hash": hex::encode(simulated_os_image()), "cpu_count": 1, "memory_size": 1_073_741_824u64,
                "pci_hole64_size": 0, "hugepages": false, "num_gpus": 0, "num_nvswitches": 0, "hotplug_off": false,
                "image": "simulated",
            })
            .to_string(),
            tcb_info: self.tcb_info(),
            simulated: true,
            sealing: SEALING_FORMATS.map(str::to_owned).to_vec(),
            recipient_keys: RECIPIENT_KEY_FORMATS.map(str::to_owned).to_vec(),
            tls_key_sha256: None,
            nvidia_payload: None,
        })
    }

    fn derive_key(&self, path: &str) -> Result<Zeroizing<[u8; 32]>, BackendError> {
        Ok(derive_path_key(&self.application_key, path))
    }
}

/// DER of the development root certificate.
pub fn development_root() -> &'static [u8] {
    pki::DevelopmentPki::get().root_certificate()
}

/// Collateral for simulated quotes, valid around `now_s` (Unix seconds); what `/v1/quote/collateral` serves.
pub fn development_collateral(now_s: u64) -> Collateral {
    pki::DevelopmentPki::get().collateral(now_s)
}

fn simulated_mrtd() -> Measurement {
    sha384(b"SIMULATED-MRTD")
}

fn simulated_os_image() -> [u8; 32] {
    sha256(b"SIMULATED-OS-IMAGE")
}

fn quoting_enclave_report(report_data: &[u8; 32]) -> Vec<u8> {
    let parts: [&[u8]; 12] = [
        &[0; 16], // CPU security versions
        &[0; 4],  // MISCSELECT
        &[0; 28],
        &[0; 16], // attributes
        &sha256(b"SIMULATED-QUOTING-ENCLAVE"),
        &[0; 32],
        &pki::QE_MR_SIGNER,
        &[0; 96],
        &1u16.to_le_bytes(), // product
        &0u16.to_le_bytes(), // version
        &[0; 60],
        &[report_data.as_slice(), &[0; 32]].concat(),
    ];
    parts.concat()
}

fn length16(data: &[u8]) -> [u8; 2] {
    u16::try_from(data.len())
        .expect("quote parts are short")
        .to_le_bytes()
}

fn length32(data: &[u8]) -> [u8; 4] {
    u32::try_from(data.len())
        .expect("quote parts are short")
        .to_le_bytes()
}

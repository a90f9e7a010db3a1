"""The result of ``inference.verify_service``: it says what the verifier found, whatever the report says."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import pytest

from zerog_py_sdk._verification import fine_tuning_result, inference_result
from zerog_py_sdk.exceptions import FileError

SIGNER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
COMPOSE = '{"docker_compose_file":"services: {}"}'
REPORT = {
    "quote": "0400",
    "event_log": json.dumps(
        [{"event": "compose-hash", "event_payload": hashlib.sha256(COMPOSE.encode()).hexdigest(), "imr": 3}]
    ),
    "tcb_info": json.dumps({"app_compose": COMPOSE}),
}
SERVICE = {
    "model": "m",
    "service_type": "chatbot",
    "verifiability": "TeeML",
    "additional_info": json.dumps({"TEEVerifier": "dstack", "TargetSeparated": False, "VerifierURL": "http://v"}),
    "tee_signer_acknowledged": True,
}


def check(name: str, status: str, detail: str = "found") -> dict[str, Any]:
    return {"id": name, "name": name, "status": status, "detail": detail, "rejection": None}


def native(report: object = REPORT, **changes: Any) -> dict[str, Any]:
    """What the native module gives for a provider that passes."""
    value = {
        "provider": "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        "is_valid": True,
        "quote_available": True,
        "signer_match": True,
        "compose_hash_match": True,
        "docker_images": [],
        "tee_signer": SIGNER,
        "expected_signer": SIGNER,
        "errors": [],
        "checks": [check("V4", "pass"), check("V8", "pass")],
        "nonce": None,
        "report": report if isinstance(report, bytes) else json.dumps(report).encode(),
        "report_path": None,
        "level": "PARTIAL",
        "assurance": "hardware",
        "steps": [],
    }
    return {**value, **changes}


def test_a_provider_that_passes() -> None:
    result = inference_result(native(), SERVICE, None)
    assert result.success is True and result.attestation_verified is True and result.attestation_error is None
    assert result.attestation_method == "dcap" and result["attestationFormat"] == "sgx_tdx"
    assert (result.tee_verifier, result.verifier_url) == ("dstack", "http://v")
    assert result.reports_generated == ["combined"] and result.reports_data["combined"]["quote"] == "0400"
    assert result.signer_verification.all_match is True
    details = result.compose_verification.details["combined"]
    assert details.calculated_hash == details.event_log_hash == hashlib.sha256(COMPOSE.encode()).hexdigest()
    assert "report" not in result and result.output_directory is None
    assert fine_tuning_result(native()).attestation_format == "sgx_tdx"


@pytest.mark.parametrize("assurance", ["simulated", "none"])
def test_success_is_the_verdict_and_nothing_else(assurance: str) -> None:
    failed = native(
        is_valid=False,
        assurance=assurance,
        signer_match=False,
        compose_hash_match=None,
        checks=[check("V4", "pass" if assurance == "simulated" else "fail", "expired")],
    )
    result = inference_result(failed, SERVICE, None)
    assert result.success is False and result.attestation_verified is False
    assert ("simulated" if assurance == "simulated" else "expired") in result.attestation_error
    assert result.signer_verification.all_match is False
    assert result.signer_verification.report_addresses[0]["match"] is False
    assert result.compose_verification.passed is False
    assert result.compose_verification.details["combined"].error == "not checked"


@pytest.mark.parametrize(
    "report",
    [
        b"no JSON",
        b"[]",
        b'{"gpu_evidence":1}',
        b'{"quote":7,"event_log":[1],"info":3}',
        b'{"tcb_info":"{","event_log":"["}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_reports_that_are_no_reports_are_shown_as_nothing(report: bytes) -> None:
    failed = native(report, is_valid=False, assurance="none", quote_available=False, checks=[], tee_signer=None)
    result = inference_result(failed, {**SERVICE, "additional_info": "no JSON"}, None)
    assert result.success is False and result.quote_data is None and result.attestation_format is None
    assert result.attestation_verified is False and result.attestation_error and result.tee_verifier is None
    assert result.compose_verification.details["combined"].calculated_hash is None


def test_a_separated_provider_names_the_broker_alone() -> None:
    extra = json.dumps({"TargetSeparated": True})
    result = inference_result(native(), {**SERVICE, "additional_info": extra}, None)
    assert result.target_separated is True and result.reports_generated == ["broker"]
    assert list(result.reports_data) == list(result.compose_verification.details) == ["broker"]


def test_the_file_has_the_names_of_the_published_client(tmp_path: pathlib.Path) -> None:
    result = inference_result(native(), SERVICE, str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name == f"verification_{result.provider}_{result.timestamp}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["success"] is True and document["is_acknowledged"] is True
    assert document["quote_data"] == "0400" and document["service_type"] == "chatbot"
    with pytest.raises(FileError):
        inference_result(native(), SERVICE, str(tmp_path / "missing"))

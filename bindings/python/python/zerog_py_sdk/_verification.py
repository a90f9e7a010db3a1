"""What ``verify_service`` returns: the judgement of the native verifier under the names of the published clients.

Every conclusion (``success``, ``signer_match``, ``passed``) is the verifier's own; nothing is decided here. What is read
out of the served report (quote text, hashes to look at) is shown, not believed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import time
from typing import Any

from .exceptions import FileError
from .models import Result

#: Name of the evidence format whose signer stands in the quote's report data.
_FORMAT = "sgx_tdx"

#: Names of the result that go into the file of an inference verification.
_FILE_NAMES = (
    "success",
    "provider",
    "model",
    "service_type",
    "verifiability",
    "tee_signer",
    "expected_signer",
    "signer_match",
    "quote_available",
    "quote_data",
    "attestation_format",
    "attestation_verified",
    "attestation_method",
    "attestation_error",
    "is_acknowledged",
    "errors",
    "timestamp",
    "level",
    "assurance",
    "checks",
)


def fine_tuning_result(value: dict[str, Any]) -> Result:
    """The result of ``broker.fine_tuning.verify_service``."""
    value.pop("report")
    return Result(value, attestation_format=_FORMAT if value["quote_available"] else None)


def inference_result(value: dict[str, Any], service: dict[str, Any], output_dir: str | None) -> Result:
    """The result of ``broker.inference.verify_service``; with a folder it is kept there too."""
    body: bytes = value.pop("report")
    report = _object(body)
    extra = _object(service["additional_info"])
    separated = extra.get("TargetSeparated") is True
    # The model node of a separated provider serves a report of its own, which is not judged: see check V19.
    kind = "broker" if separated else "combined"
    checks = {check["id"]: check for check in value["checks"]}
    signatures = checks.get("V4")
    signatures_hold = signatures is not None and signatures["status"] == "pass"
    hardware = value["assurance"] == "hardware"
    quote = report.get("quote", report.get("intel_quote"))
    result = Result(
        value,
        success=value["is_valid"],
        model=service["model"],
        service_type=service["service_type"],
        verifiability=service["verifiability"],
        tee_verifier=extra.get("TEEVerifier"),
        target_separated=separated,
        verifier_url=extra.get("VerifierURL"),
        reports_generated=[kind],
        output_directory=output_dir,
        reports_data={kind: report},
        signer_verification=Result(
            contract_address=value["expected_signer"],
            report_addresses=[
                Result(report_type=kind, address=value["tee_signer"], match=value["signer_match"]),
            ],
            all_match=value["signer_match"],
        ),
        compose_verification=Result(
            passed=value["compose_hash_match"] is True,
            details={kind: _compose_details(report, checks.get("V8"))},
        ),
        quote_data=quote if isinstance(quote, str) else None,
        attestation_format=_FORMAT if value["quote_available"] else None,
        attestation_verified=signatures_hold and hardware,
        attestation_method="dcap" if signatures_hold else None,
        attestation_error=_attestation_error(signatures, hardware),
        is_acknowledged=service["tee_signer_acknowledged"],
        timestamp=int(time.time()),
    )
    if output_dir is not None:
        _keep(result, output_dir)
    return result


def _attestation_error(signatures: dict[str, Any] | None, hardware: bool) -> str | None:
    """Why the quote's signatures prove no hardware; none when they do."""
    if signatures is None:
        return "the report carries no quote that could be checked"
    if signatures["status"] != "pass":
        return str(signatures["detail"])
    return None if hardware else "the TEE is simulated: its quote is signed by the development root"


def _compose_details(report: dict[str, Any], check: dict[str, Any] | None) -> Result:
    """Both hashes as the report shows them, and why the check did not pass."""
    information = report.get("info")
    tcb_info = report.get("tcb_info", information.get("tcb_info") if isinstance(information, dict) else None)
    compose = _object(tcb_info).get("app_compose")
    log = report.get("event_log")
    if isinstance(log, str):
        log = _json(log)
    events = [event for event in log if isinstance(event, dict)] if isinstance(log, list) else []
    logged = next((event.get("event_payload") for event in events if event.get("event") == "compose-hash"), None)
    passed = check is not None and check["status"] == "pass"
    return Result(
        calculated_hash=hashlib.sha256(compose.encode()).hexdigest() if isinstance(compose, str) else None,
        event_log_hash=logged,
        error=None if passed else ("not checked" if check is None else check["detail"]),
    )


def _keep(result: Result, output_dir: str) -> None:
    name = f"verification_{result['provider']}_{result['timestamp']}.json"
    path = pathlib.Path(output_dir) / name
    document = {member: result[member] for member in _FILE_NAMES}
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FileError(
            "verifyService", f"cannot write {path}: {error.strerror}", path=str(path), errno=error.errno
        ) from None


def _object(value: object) -> dict[str, Any]:
    """A JSON object that may be given as text; empty for anything else."""
    if isinstance(value, (str, bytes)):
        value = _json(value)
    return value if isinstance(value, dict) else {}


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

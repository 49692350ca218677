"""What the client library raises, as errors of ours: to wait out, or to stop at, with what a person has to change.

It knows Kafka's error codes and its rights by name (an operation on a resource, as `kafka-acls` takes them); it
refuses to ask anybody, which is `stream/kafka/diagnose.py`'s. Invariant: what passes by itself is BrokerUnavailable,
what does not is BrokerMisconfigured, and its hint names the setting or the right.
"""

import re
import ssl
from collections.abc import Iterator, Sequence

from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError

from ebbtide.stream.errors import BrokerMisconfigured, BrokerUnavailable
from ebbtide.stream.kafka.settings import KafkaSettings

CREDENTIALS = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.UnsupportedSaslMechanismError,
)
RIGHTS = (
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailed,
)
# What Kafka will say again, however often it is asked. All else may pass: a broker restarts, a coordinator moves.
PERMANENT = (
    *CREDENTIALS,
    *RIGHTS,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.InvalidCommitOffsetSizeError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.OffsetMetadataTooLargeError,
)


def transactional_prefix(settings: KafkaSettings) -> str:
    """What all transactional ids of a worker begin with."""
    return f"{settings.group}-{settings.topic}-"


def failure(
    settings: KafkaSettings, what: str, error: BaseException, operation: str = "READ"
) -> BrokerMisconfigured | BrokerUnavailable:
    """The client library's error as one of ours, to be raised from it. `operation` is what `what` does with a topic."""
    for cause in causes(error):
        if isinstance(cause, RIGHTS):
            return forbidden(settings, what, [_right(settings, cause, operation)])
        if isinstance(cause, PERMANENT):
            return BrokerMisconfigured(
                f"Kafka at {settings.url} refuses {what}: {cause!r}", hint=advice(settings, cause)
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerMisconfigured(
                f"Kafka at {settings.url} is not who it should be: {cause.verify_message}",
                hint=advice(settings, cause),
            )
    return BrokerUnavailable(f"Kafka at {settings.url} failed {what}: {error!r}")


def forbidden(
    settings: KafkaSettings, what: str, rights: Sequence[str], otherwise: str = ""
) -> BrokerMisconfigured:
    """We are known, and may not. `rights` like "READ on topic 'clicks'"; `otherwise` is another way out."""
    who = f"user {settings.sasl.username!r}" if settings.sasl.username else "our principal"
    listed = " and ".join(rights)
    return BrokerMisconfigured(
        f"Kafka at {settings.url} forbids {what}: we lack {listed}",
        hint=f"grant {who} the ACL {listed}" + (f", or {otherwise}" if otherwise else ""),
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: aiokafka hides some in a KafkaConnectionError, others in a text."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        # KafkaError("TopicAuthorizationFailedError()"), from places of its coordinator that expect no refusal
        if type(seen) is KafkaError and (named := re.search(r"\b(\w+)\(", str(seen))):
            kind = getattr(kafka_errors, named[1], None)
            if isinstance(kind, type) and issubclass(kind, KafkaError):
                yield kind()
        seen = seen.__cause__ or seen.__context__


def advice(settings: KafkaSettings, error: BaseException) -> str:
    """What to change when a broker will not have us, or we not it."""
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return "set kafka.sasl.mechanism to one that this listener accepts"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return "this listener asks for no SASL: unset kafka.sasl.mechanism, or use the port of one that does"
    if isinstance(error, CREDENTIALS):
        if settings.sasl.mechanism == "OAUTHBEARER":
            return "check the token that kafka.sasl.token_callback or kafka.sasl.token_file gives"
        return "check kafka.sasl.username and kafka.sasl.password, and that this user exists for kafka.sasl.mechanism"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
            return "name the brokers as their certificates do, here and in their advertised.listeners"
        return "set kafka.tls.ca_file to the authority that signed the brokers' certificates"
    if isinstance(error, ssl.SSLError):
        if any(word in str(error).lower() for word in ("certificate", "unknown_ca", "unknown ca")):
            return "the brokers want a certificate of ours that they trust: check kafka.tls.cert_file and key_file"
        return "check kafka.tls.enabled, and that this port speaks TLS"
    return ""


def _right(settings: KafkaSettings, error: BaseException, operation: str) -> str:
    named = error.args[0] if error.args else None
    if isinstance(error, kafka_errors.GroupAuthorizationFailedError):
        return f"READ on group {(named or settings.group)!r}"
    if isinstance(error, kafka_errors.TopicAuthorizationFailedError):
        topics = sorted(named) if isinstance(named, set | frozenset) else [named or settings.topic]
        return " and ".join(f"{operation} on topic {topic!r}" for topic in topics)
    if isinstance(error, kafka_errors.TransactionalIdAuthorizationFailed):
        return (
            f"WRITE on transactional-id {transactional_prefix(settings)!r} (--resource-pattern-type prefixed)"
        )
    return "IDEMPOTENT_WRITE on the cluster (or WRITE on any topic)"  # all we do with a cluster besides creating topics

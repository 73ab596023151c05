"""Names in Redis: what may be an id, what a template must be, and that no id reaches another's key."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError, InvalidId
from backplane.keys import TIERS, Keys, check_id, check_user_id, is_id

ACTIONS = "nooble4:{environment}:agent_execution_service:actions:{tier}"
CALLBACKS = "orchestrator:{tenant_id}:callbacks"

NASTY = [
    ":", "{", "}", "/", "\\", "*", "?", "[", "]", "^", "$", "\n", "\r", "\t", "\0", " ", '"', "'", "`",
    "%", "&", "=", "#", ",", ";", "|", "<", ">", "(", ")", "!", "\x7f", "\x85", "\u2028", "é", "٣", "Ａ",
    "\ud800", "\U0001f600",
]  # fmt: skip

ids = st.text(
    alphabet="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-", min_size=1, max_size=12
)
# Ids that look like parts of keys are the likeliest to be mistaken for one.
tricky_ids = ids | st.sampled_from(
    ["log", "seen", "s", "dead", "bytes", "fence", "callbacks", "pods", "routers", "ao", "a", "a.b", "~"]
)
tricky_ids |= st.sampled_from(["rate", "minute", "session", "limits", "connections", "user"])


def names(
    prefix: str = "ao", environment: str = "dev", actions: str = ACTIONS, callbacks: str = CALLBACKS
) -> Keys:
    return Keys(prefix, environment, actions, callbacks)


def test_enough_nasty_characters_are_tried() -> None:
    """The list is not shortened by accident."""
    assert len(set(NASTY)) >= 33


@pytest.mark.parametrize("character", [*NASTY, "@", "+"], ids=ascii)
def test_ids_with_other_characters_are_refused(character: str) -> None:
    """Anything else in an id is refused, wherever it stands: separators, globs, line ends, other scripts."""
    for value in (character, f"{character}a", f"a{character}", f"a{character}b"):
        assert not is_id(value)
        with pytest.raises(InvalidId) as caught:
            check_id(value, "X-Session-ID")
        assert caught.value.what == "X-Session-ID"
        assert "X-Session-ID" in str(caught.value)
        assert str(caught.value).replace("…", "").isascii()  # it may be logged: no line ends, no surrogates
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("character", NASTY, ids=ascii)
def test_user_ids_with_other_characters_are_refused(character: str) -> None:
    """A user id allows @ and +, and no more than that."""
    for value in (character, f"{character}a", f"a{character}", f"a{character}b"):
        with pytest.raises(InvalidId):
            check_user_id(value, "user_id")


def test_ids_of_1_to_128_characters_are_taken() -> None:
    """The contract's whole alphabet and both ends of the length pass unchanged."""
    for value in ("a", "-", "a" * 128, "AZaz09._~-"):
        assert check_id(value, "tenant_id") == value
        assert is_id(value)
    assert check_user_id("ana+test@example.org", "user_id") == "ana+test@example.org"


def test_empty_and_long_ids_are_refused() -> None:
    """An absent id and one that is too long are told apart in the message, and long ones shown cut."""
    with pytest.raises(InvalidId, match="tenant_id is missing"):
        check_id("", "tenant_id")
    with pytest.raises(InvalidId, match="is not a valid id") as caught:
        check_id("a" * 129, "tenant_id")
    assert len(str(caught.value)) < 160
    assert not is_id("a" * 129)
    assert not is_id("")


@pytest.mark.parametrize("value", [None, 1, 1.0, True, b"a", ["a"], {"a": 1}])
def test_only_text_is_an_id(value: object) -> None:
    """A JSON value of another type is no id, and asking does not raise."""
    assert not is_id(value)


class TestTemplates:
    def test_the_contracts_names(self) -> None:
        """With the default templates the queues are called what the AES knows."""
        keys = names()
        assert keys.actions("free") == "nooble4:dev:agent_execution_service:actions:free"
        assert keys.callbacks("acme") == "orchestrator:acme:callbacks"
        assert [keys.actions(tier).rpartition(":")[2] for tier in TIERS] == list(TIERS)

    def test_own_templates(self) -> None:
        """Both queue names are the operator's to choose; text after the tenant may be absent."""
        keys = names(environment="prod", actions="q.{tier}.{environment}", callbacks="cb-{tenant_id}")
        assert keys.actions("enterprise") == "q.enterprise.prod"
        assert keys.callbacks("acme") == "cb-acme"
        assert keys.tenant_of(b"cb-acme") == "acme"

    def test_an_actions_template_needs_its_tier(self) -> None:
        """Four tiers in one queue would be a silent loss of priority."""
        with pytest.raises(ConfigurationError, match=r"ACTIONS_QUEUE_TEMPLATE.*\{tier\}"):
            names(actions="actions:{environment}")

    @pytest.mark.parametrize(
        "template",
        ["callbacks", "{tenant_id}:callbacks", "cb:{tenant_id}:{tenant_id}", "cb:{{tenant_id}}",
         "cb:{x}:{tenant_id}", "cb:{tenant_id}:{", "cb:}{tenant_id}", ""],
    )  # fmt: skip
    def test_a_callbacks_template_is_text_then_tenant_once(self, template: str) -> None:
        """A list whose tenant cannot be read back, or whose braces move keys to another slot, is refused."""
        with pytest.raises(ConfigurationError, match="CALLBACKS_QUEUE_TEMPLATE"):
            names(callbacks=template)

    @pytest.mark.parametrize("prefix", ["orchestrator:", "orchestrator:x", "orchestrator", "o", "orch", ""])
    def test_own_keys_must_not_begin_like_callback_lists(self, prefix: str) -> None:
        """Or the router would be woken by each of its own writes."""
        with pytest.raises(ConfigurationError, match="KEY_PREFIX"):
            names(prefix=prefix)

    def test_own_keys_never_begin_with_orchestrator(self) -> None:
        """The contract leaves that start to the shared queues."""
        assert not [key for key in family(names(), "acme", "s1") if key.startswith("orchestrator:")]

    @pytest.mark.parametrize("template", ["cb[1]:{tenant_id}", "c*b:{tenant_id}:*", "c?b\\:{tenant_id}"])
    def test_the_scan_pattern_takes_the_template_literally(self, template: str) -> None:
        """Characters that mean something in a glob do not, or the safety sweep would look past every list."""
        keys = names(callbacks=template)
        before, after = template.split("{tenant_id}")
        assert unescaped(keys.callbacks_pattern) == [*before, None, *after, None]  # numbers may follow


def unescaped(glob: str) -> list[str | None]:
    """A glob as literal characters and None for its stars; other wildcards are not expected."""
    out: list[str | None] = []
    characters = iter(glob)
    for character in characters:
        assert character not in "?[]", f"{character} is not taken literally"
        out.append(next(characters) if character == "\\" else None if character == "*" else character)
    return out


class TestTenantOf:
    @given(tenant=ids)
    def test_round_trip(self, tenant: str) -> None:
        """The list says whose a callback is."""
        for keys in (names(), names(callbacks="cb-{tenant_id}"), names(callbacks="c.{tenant_id}.d")):
            assert keys.tenant_of(keys.callbacks(tenant).encode()) == tenant

    @pytest.mark.parametrize(
        "name",
        [b"", b"orchestrator:", b"orchestrator::callbacks", b"orchestrator:a:callbacks:x",
         b"orchestrator:a:b:callbacks", b"orchestrator:a\n:callbacks", b"orchestrator:a:callbacks\n",
         b"xorchestrator:a:callbacks", b"orchestrator:\xff:callbacks", b"orchestrator:{a}:callbacks",
         b"orchestrator:\xd9\xa3:callbacks", b"orchestrator:" + b"a" * 129 + b":callbacks"],
    )  # fmt: skip
    def test_other_names_have_no_tenant(self, name: bytes) -> None:
        """A name that only looks like a callback list is nobody's."""
        assert names().tenant_of(name) is None

    @given(st.binary(max_size=60))
    def test_any_name_is_a_tenants_or_nobodys(self, name: bytes) -> None:
        """No key name makes the router fail, and a tenant that is found is a valid id."""
        tenant = names().tenant_of(b"orchestrator:" + name)
        assert tenant is None or is_id(tenant)

    def test_a_dot_in_the_template_is_a_dot(self) -> None:
        """The template is text, not a pattern."""
        assert names(callbacks="c.b:{tenant_id}").tenant_of(b"cxb:acme") is None


def family(keys: Keys, tenant: str, session: str) -> set[str]:
    """Every key that exists for the sake of one session of a tenant."""
    base = keys.session(keys.callbacks(tenant), session)
    counts = {keys.session_rate(tenant, session), keys.session_connections(tenant, session)}
    return {base, f"{base}:log", f"{base}:seen"} | counts


def tenant_keys(keys: Keys, tenant: str) -> set[str]:
    """Every key that exists for the sake of a tenant as a whole."""
    callbacks = keys.callbacks(tenant)
    dead = keys.dead_letters(callbacks)
    rates = {keys.rate(tenant, name) for name in ("minute", "day")}
    limits = {keys.tenant_limits(tenant), keys.tenant_connections(tenant)}
    return {callbacks, keys.fence(callbacks), dead, f"{dead}:bytes"} | limits | rates


def pod_keys(keys: Keys, member: str) -> set[str]:
    """Every key and channel of one process."""
    own = {keys.member(kind, member) for kind in ("pods", "routers")}
    own |= {keys.pod_connections(member)}
    return own | {keys.pod_channel(member, n) for n in (0, 1, 12)}


def address_keys(keys: Keys, address: str) -> set[str]:
    """Every key of one client address."""
    return {keys.address_rate(address), keys.address_limits(address)}


def revocation_keys(keys: Keys) -> set[str]:
    """Every key of the revocations, but not their channel."""
    return {keys.revocations, keys.revocation_ends, keys.revocation_news, keys.revocation_version}


@given(first=st.tuples(tricky_ids, tricky_ids), second=st.tuples(tricky_ids, tricky_ids), pod=tricky_ids)
def test_no_id_reaches_another_key(first: tuple[str, str], second: tuple[str, str], pod: str) -> None:
    """No two sessions or users share one, and none is a tenant's, a process's, the cluster's or a queue's."""
    assume(first != second)
    for keys in (names(), names(callbacks="cb:{tenant_id}"), names(callbacks="cb.{tenant_id}.s")):
        cluster = {keys.callback_lists, keys.dead_letter_lists, keys.members("pods"), keys.members("routers")}
        cluster |= {keys.leases, keys.pod_leases, keys.new_lists, keys.control_channel}
        cluster |= {*revocation_keys(keys), keys.revocation_channel}
        queues = {keys.actions(tier) for tier in TIERS}
        groups = [family(keys, *first), family(keys, *second), pod_keys(keys, pod), cluster, queues]
        groups += [tenant_keys(keys, tenant) for tenant in {first[0], second[0]}]
        groups += [{keys.user_connections(*user)} for user in (first, second)]
        groups += [address_keys(keys, pod)]
        everything = [key for group in groups for key in group]
        assert len(set(everything)) == len(everything)


@given(tenant=ids, session=ids)
def test_a_sessions_keys_share_the_slot_of_their_list(tenant: str, session: str) -> None:
    """On a cluster one script moves a callback into its log: the hash tag is the list's name."""
    keys = names()
    callbacks = keys.callbacks(tenant)
    for key in family(keys, tenant, session) | (tenant_keys(keys, tenant) - {callbacks}):
        assert key[key.index("{") + 1 : key.index("}")] == callbacks


def test_a_tenants_rates_and_limits() -> None:
    """Their names, by which an operator finds them."""
    keys = names()
    assert keys.rate("acme", "minute") == "ao:{orchestrator:acme:callbacks}:rate:minute"
    assert keys.session_rate("acme", "s1") == "ao:{orchestrator:acme:callbacks}:rate:session:s1"
    assert keys.tenant_limits("acme") == "ao:{orchestrator:acme:callbacks}:limits"


@given(tenant=ids, session=ids)
def test_a_spread_tenants_rates_are_in_one_slot(tenant: str, session: str) -> None:
    """One script reaches a tenant's limits and all its rates, whichever list a session has."""
    spread = Keys("ao", "dev", ACTIONS, CALLBACKS, {tenant: 8})
    for keys in (names(), spread):
        rates = [keys.rate(tenant, "minute"), keys.rate(tenant, "day"), keys.session_rate(tenant, session)]
        for key in (*rates, keys.tenant_limits(tenant)):
            assert key[key.index("{") + 1 : key.index("}")] == keys.callbacks(tenant)


def test_connection_counts() -> None:
    """Their names, by which an operator finds them; a user's id may have more characters than other ids."""
    keys = names()
    assert keys.tenant_connections("acme") == "ao:{orchestrator:acme:callbacks}:connections"
    assert keys.session_connections("acme", "s1") == "ao:{orchestrator:acme:callbacks}:connections:session:s1"
    assert keys.user_connections("acme", "a@b+c") == "ao:{orchestrator:acme:callbacks}:connections:user:a@b+c"
    assert keys.pod_leases == "ao:{pods}:leases"


def test_revocations() -> None:
    """One script reads and writes all of it, so all of it is in one slot."""
    keys = names()
    assert keys.revocations == "ao:{revocations}"
    assert {key[key.index("{") + 1 : key.index("}")] for key in revocation_keys(keys)} == {"revocations"}


def test_addresses_are_in_slots_of_their_own() -> None:
    """An address's limits are where its rate is, and not all addresses are on one node."""
    keys = names()
    for address in ("192.0.2.7", "2001:db8::"):
        tags = {key[key.index("{") + 1 : key.index("}")] for key in address_keys(keys, address)}
        assert tags == {f"address:{address}"}


@given(tenant=ids, session=ids, user=ids)
def test_connection_counts_share_the_slot_of_the_limits(tenant: str, session: str, user: str) -> None:
    """One script reaches all of them, also of a spread tenant."""
    for keys in (names(), Keys("ao", "dev", ACTIONS, CALLBACKS, {tenant: 8})):
        counts = [keys.session_connections(tenant, session), keys.user_connections(tenant, user)]
        for key in (keys.tenant_limits(tenant), keys.tenant_connections(tenant), *counts):
            assert key[key.index("{") + 1 : key.index("}")] == keys.callbacks(tenant)


def test_probes_are_not_all_in_one_slot() -> None:
    """On a cluster a process finds one for each node by counting on."""
    keys = names()
    for name in (keys.pod_channel, keys.router_probe):
        tags = {name("m", n).partition("{")[2].partition("}")[0] for n in range(100)}
        assert len(tags) == 100

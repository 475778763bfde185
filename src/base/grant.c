/*
 * grant.c
 *		What a key's row grants: its state, its scopes, its addresses.
 *
 * Each function answers from a StoredKey that the caller has at hand and reads
 * nothing else.
 */
#include "postgres.h"

#include <sys/socket.h>

#include "catalog/pg_type_d.h"
#include "utils/builtins.h"
#include "utils/inet.h"

#include "base/grant.h"
#include "compat.h"

/* The scopes of a key. */
typedef struct Scopes
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;
} Scopes;

static void take_apart(ArrayType *scopes, Scopes *result);
static bool grants(const Scopes *scopes, const char *want, int want_len);
static bool in_networks(ArrayType *cidrs, inet *address);
static inet *unmapped(inet *network);
static void unmap(inet *address, int bits, inet_struct *result);

/*
 * Return the verdict on a key by itself at that moment: VERDICT_VALID, or the
 * reason why the key is not good.
 */
Verdict
grant_state(const StoredKey *key, TimestampTz now)
{
	if (key->revoked)
		return VERDICT_REVOKED;
	if (!key->enabled)
		return VERDICT_DISABLED;
	if (now >= key->expires_at)
		return VERDICT_EXPIRED;
	if (now >= key->grace_until)
		return VERDICT_ROTATED;
	return VERDICT_VALID;
}

/*
 * Return whether one of the scopes grants the wanted one.  A scope grants
 * itself, "*" grants all, and "a:*" grants all that begins with "a:".  Nothing
 * grants an empty scope.
 */
bool
grant_scope(ArrayType *scopes, text *wanted)
{
	Scopes		have;

	take_apart(scopes, &have);
	return grants(&have, VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(wanted));
}

/*
 * Return whether a text is a list of scopes (RFC 6749 section 3.3).  One space
 * separates words.  "|" separates the alternatives of a word.  None is empty.
 */
bool
grant_is_list(text *list)
{
	const char *at = VARDATA_ANY(list);
	bool		empty = true;

	for (Size i = 0; i < VARSIZE_ANY_EXHDR(list); i++)
	{
		bool		separator = at[i] == ' ' || at[i] == '|';

		if (separator && empty)
			return false;
		empty = separator;
	}
	return !empty;
}

/*
 * Return whether the scopes grant each word of a list.  Of the alternatives of a
 * word one is enough.
 */
bool
grant_scopes(ArrayType *scopes, text *list)
{
	const char *at = VARDATA_ANY(list);
	const char *end = at + VARSIZE_ANY_EXHDR(list);
	bool		word_granted = false;
	Scopes		have;

	take_apart(scopes, &have);
	for (;; at++)
	{
		const char *begin = at;

		while (at < end && *at != ' ' && *at != '|')
			at++;
		word_granted = word_granted || grants(&have, begin, at - begin);
		if (at < end && *at == '|')
			continue;
		if (at == end || !word_granted)
			return word_granted;
		word_granted = false;
	}
}

static void
take_apart(ArrayType *scopes, Scopes *result)
{
	deconstruct_array(scopes, TEXTOID, -1, false, TYPALIGN_INT,
					  &result->elements, &result->nulls, &result->count);
}

static bool
grants(const Scopes *scopes, const char *want, int want_len)
{
	if (want_len == 0)
		return false;
	for (int i = 0; i < scopes->count; i++)
	{
		const char *have;
		int			have_len;

		if (scopes->nulls[i])
			continue;
		have = VARDATA_ANY(DatumGetPointer(scopes->elements[i]));
		have_len = VARSIZE_ANY_EXHDR(DatumGetPointer(scopes->elements[i]));
		if (have_len == want_len && memcmp(have, want, want_len) == 0)
			return true;
		if (have_len == 1 && have[0] == '*')
			return true;
		if (have_len >= 2 && have[have_len - 2] == ':' &&
			have[have_len - 1] == '*' && want_len >= have_len &&
			memcmp(have, want, have_len - 1) == 0)
			return true;
	}
	return false;
}

/*
 * Return whether the address lies in one of the networks; false for NULL, an
 * address that the caller did not give.
 */
bool
grant_address(ArrayType *cidrs, inet *address)
{
	inet		host = {0};		/* SET_INET_VARSIZE() reads the length */

	if (address == NULL)
		return false;
	grant_host(address, &host.inet_data);
	SET_INET_VARSIZE(&host);
	return in_networks(cidrs, &host);
}

/* Return whether each of the wanted networks lies in one of the networks. */
bool
grant_networks(ArrayType *cidrs, ArrayType *wanted)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(wanted, CIDROID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i] && !in_networks(cidrs, unmapped(DatumGetInetPP(elements[i]))))
			return false;
	return true;
}

/* Return whether the address or network, unmapped, lies in one of the networks. */
static bool
in_networks(ArrayType *cidrs, inet *address)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(cidrs, CIDROID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	for (int i = 0; i < count; i++)
		if (!nulls[i] &&
			DatumGetBool(DirectFunctionCall2(network_subeq,
											 InetPGetDatum(address),
											 InetPGetDatum(unmapped(DatumGetInetPP(elements[i]))))))
			return true;
	return false;
}

/*
 * Set *host to the address of a client: a host, so without a netmask, and as
 * IPv4 if the address is an IPv4-mapped IPv6 one.  Allocates nothing.
 */
void
grant_host(inet *address, inet_struct *host)
{
	unmap(address, ip_maxbits(address), host);
}

/* Return a copy of a network, as IPv4 if it is an IPv4-mapped IPv6 one. */
static inet *
unmapped(inet *network)
{
	inet	   *result = palloc0(sizeof(inet));

	unmap(network, ip_bits(network), &result->inet_data);
	SET_INET_VARSIZE(result);
	return result;
}

/*
 * Copy an address with that netmask, as IPv4 if it is an IPv4-mapped IPv6 one
 * (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2).
 */
static void
unmap(inet *address, int bits, inet_struct *result)
{
	static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

	memset(result, 0, sizeof(inet_struct));
	if (ip_family(address) == PGSQL_AF_INET6 && bits >= 96 &&
		memcmp(ip_addr(address), mapped, sizeof(mapped)) == 0)
	{
		result->family = PGSQL_AF_INET;
		result->bits = bits - 96;
		memcpy(result->ipaddr, ip_addr(address) + 12, 4);
	}
	else
	{
		result->family = ip_family(address);
		result->bits = bits;
		memcpy(result->ipaddr, ip_addr(address), ip_addrsize(address));
	}
}

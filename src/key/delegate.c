/*
 * delegate.c
 *		What a key may do that manages keys: the principal's own limits.
 *
 * A principal makes and changes keys within itself.  Its tenant, environment,
 * scopes, end, networks and rate limit bound those of every key that it touches.
 * A member makes no such key.
 *
 * Trust: the triggers of guard.c call these functions, so no way around them is
 * open to a role that does not own the table.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/grant.h"
#include "base/limiter.h"
#include "base/now.h"
#include "base/principal.h"
#include "base/store.h"
#include "compat.h"
#include "key/delegate.h"
#include "key/session.h"

#define VALUE(column) (values[(column) - 1])
#define ISNULL(column) (nulls[(column) - 1])

static const StoredKey *find_principal(void);
static void principal_no_longer_good(const char *key_id);
static char *scope_beyond(const StoredKey *principal, const Datum *values);
static bool limit_is_beyond(const StoredKey *principal, const Datum *values,
							const bool *nulls);

/*
 * Return the principal that makes, changes or deletes a key; NULL without a
 * principal.  Raise 42501 if the principal is no longer good.
 */
static const StoredKey *
find_principal(void)
{
	const StoredKey *principal;

	if (!principal_is_set())
		return NULL;
	principal = session_principal();
	if (principal == NULL)
		principal_no_longer_good(principal_key_id());
	return principal;
}

/* Raise 42501 for a principal; NULL: one whose token was refused. */
static void
principal_no_longer_good(const char *key_id)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 key_id == NULL ?
			 errmsg("authenticate() has refused a token in this transaction") :
			 errmsg("API key \"%s\" is no longer good", key_id)));
}

/*
 * Return a scope of the key that the principal's scopes do not grant, palloc'd;
 * NULL if they grant all.
 */
static char *
scope_beyond(const StoredKey *principal, const Datum *values)
{
	Datum	   *scopes;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(VALUE(KEY_SCOPES)), TEXTOID, -1,
					  false, TYPALIGN_INT, &scopes, NULL, &count);
	for (int i = 0; i < count; i++)
		if (!grant_scope(principal->scopes, DatumGetTextPP(scopes[i])))
			return TextDatumGetCString(scopes[i]);
	return NULL;
}

/*
 * Check a key that a principal changes or deletes, as it was.  Raise 42501 if
 * the key has a scope that the principal's scopes do not grant.
 */
void
delegate_check_old(const Datum *values)
{
	const StoredKey *principal = find_principal();
	char	   *scope;

	if (principal != NULL && (scope = scope_beyond(principal, values)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot change or delete API key \"%s\"",
						principal->key_id,
						TextDatumGetCString(VALUE(KEY_KEY_ID))),
				 errdetail("The key has scope \"%s\", which the caller's key does not have.",
						   scope)));
}

/*
 * Check a key that a principal makes or changes.  Raise 42501 unless the key
 * has the principal's tenant and environment, only scopes that the principal's
 * scopes grant, and no value beyond the principal's own in a column that
 * changes.
 */
void
delegate_check(const Datum *values, const bool *nulls, const bool *changed)
{
	const StoredKey *principal = find_principal();
	const char *beyond = NULL;
	char	   *scope;

	if (principal == NULL)
		return;
	if (!store_same_text(DatumGetTextPP(VALUE(KEY_TENANT)), principal->tenant))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot manage keys of another tenant",
						principal->key_id)));
	if (!store_same_text(DatumGetTextPP(VALUE(KEY_ENVIRONMENT)), principal->environment))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot manage keys of environment \"%s\"",
						principal->key_id,
						TextDatumGetCString(VALUE(KEY_ENVIRONMENT)))));
	if ((scope = scope_beyond(principal, values)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot grant scope \"%s\", which it does not have",
						principal->key_id, scope)));

	if (changed[KEY_EXPIRES_AT - 1] &&
		(ISNULL(KEY_EXPIRES_AT) ? principal->expires_at != DT_NOEND :
		 DatumGetTimestampTz(VALUE(KEY_EXPIRES_AT)) > principal->expires_at))
		beyond = "expires_at";
	else if (changed[KEY_ALLOWED_CIDRS - 1] && principal->allowed_cidrs != NULL &&
			 (ISNULL(KEY_ALLOWED_CIDRS) ||
			  !grant_networks(principal->allowed_cidrs,
							  DatumGetArrayTypeP(VALUE(KEY_ALLOWED_CIDRS)))))
		beyond = "allowed_cidrs";
	else if ((changed[KEY_RATE_LIMIT - 1] || changed[KEY_RATE_WINDOW - 1]) &&
			 limit_is_beyond(principal, values, nulls))
		beyond = "rate_limit";
	if (beyond != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("API key \"%s\" cannot give a key \"%s\" beyond its own",
						principal->key_id, beyond),
				 errhint("Give a value within that of the key that authenticated.")));
}

/*
 * Check the scopes that a member gives a key.  Raise 42501 if they grant
 * apikeys:manage, because as a principal such a key reaches keys of others.
 */
void
delegate_check_member(const Datum *values)
{
	if (session_is_member() &&
		grant_scope(DatumGetArrayTypeP(VALUE(KEY_SCOPES)),
					cstring_to_text(SESSION_MANAGE_SCOPE)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("a member cannot give an API key the scope \"%s\"",
						SESSION_MANAGE_SCOPE),
				 errhint("Ask a manager to give it, or leave it out.")));
}

/*
 * Return whether a key's rate limit lets more through than the principal's: more
 * at once, or more over time.
 */
static bool
limit_is_beyond(const StoredKey *principal, const Datum *values,
				const bool *nulls)
{
	int32		limit;

	if (principal->rate_limit == 0)
		return false;
	if (ISNULL(KEY_RATE_LIMIT) || ISNULL(KEY_RATE_WINDOW))
		return true;
	limit = DatumGetInt32(VALUE(KEY_RATE_LIMIT));
	return limit > principal->rate_limit ||
		(double) limit * limiter_window(&principal->rate_window) >
		(double) principal->rate_limit *
		limiter_window(DatumGetIntervalP(VALUE(KEY_RATE_WINDOW)));
}

/*
 * OwnerWork: lock the row of a principal whose key another key is about to be
 * committed for.  Raise 42501 if another transaction has revoked or deleted the
 * principal's key.
 *
 * Locking: a revocation locks the row too.  If the revocation comes first, this
 * function waits, and then raises.  If this function comes first, the revocation
 * waits, and a cascade then sees the new key.  The lock is held until the end of
 * the transaction, so it is taken at COMMIT and not at the INSERT.
 */
void
delegate_lock(void *arg)
{
	static SPIPlanPtr plan = NULL;
	Oid			type = TEXTOID;
	Datum		key_id = CStringGetTextDatum(arg);
	bool		good = false;

	SPI_connect();
	if (now_execute(&plan, "SELECT revoked_at, xmin FROM rk_apikeys.api_keys"
					" WHERE key_id = $1 FOR SHARE", 1, &type, &key_id) > 0)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		Datum		revoked_at = SPI_getbinval(row, desc, 1, &isnull);

		/*
		 * A key may make another key, and then revoke itself.  The row alone may
		 * be this transaction's by a change after another's revocation.
		 */
		good = isnull ||
			(DatumGetTimestampTz(revoked_at) == GetCurrentTransactionStartTimestamp() &&
			 TransactionIdIsCurrentTransactionId(DatumGetTransactionId(SPI_getbinval(row, desc, 2, &isnull))));
	}
	SPI_finish();
	if (!good)
		principal_no_longer_good(arg);
}

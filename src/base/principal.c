/*
 * principal.c
 *		The setting that names the key this transaction authenticated as.
 *
 * The principal lives in a setting, rk_apikeys.principal, because PostgreSQL
 * then handles savepoints, the end of the transaction and parallel workers.
 * The setting holds the key id alone.  key/session.c reads all other facts from
 * the key itself, at each use, so a key that is revoked in the middle of a
 * transaction grants nothing to the next statement.
 *
 * Trust: policies of the users' tables depend on the principal.  The check hook
 * refuses every value except the one that authenticate() sets, whoever sets it
 * and by whatever way.  A superuser can clear the setting.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "utils/guc.h"

#include "base/principal.h"
#include "compat.h"

/* The setting's value after a refusal; no key id. */
#define NOBODY "nobody"

char	   *principal_setting = NULL;

/* True only while principal_set() runs. */
static bool setting_it = false;

/* The setting's check hook. */
bool
principal_check(char **newval, void **extra, GucSource source)
{
	if (setting_it || InitializingParallelWorker ||
		(source == PGC_S_DEFAULT && (*newval)[0] == '\0'))
		return true;
	GUC_check_errcode(ERRCODE_INSUFFICIENT_PRIVILEGE);
	GUC_check_errmsg("parameter \"rk_apikeys.principal\" cannot be set");
	GUC_check_errhint("Use rk_apikeys.authenticate().");
	return false;
}

/* Make a key the principal until the transaction ends. */
void
principal_set(const char *key_id)
{
	setting_it = true;
	PG_TRY();
	{
		(void) set_config_option("rk_apikeys.principal", key_id,
								 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	}
	PG_FINALLY();
	{
		setting_it = false;
	}
	PG_END_TRY();
}

/*
 * Take the principal away until the transaction ends, after authenticate() has
 * refused a token.  What remains is a principal without a key, because the role
 * must not get back the rights that the principal has restricted.
 */
void
principal_take_away(void)
{
	if (principal_is_set())
		principal_set(NOBODY);
}

/* Return whether a principal is set.  Its key may be good, dead or none. */
bool
principal_is_set(void)
{
	return principal_setting[0] != '\0';
}

/* Return the principal's key id; NULL without a principal, or if it has no key. */
const char *
principal_key_id(void)
{
	return principal_is_set() && strcmp(principal_setting, NOBODY) != 0 ?
		principal_setting : NULL;
}

/*
 * Raise 42501 if a principal is set.  Functions that reach the data of all
 * tenants past the policies call this, because a principal belongs to one
 * tenant.
 */
void
principal_refuse(void)
{
	if (principal_is_set())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 principal_key_id() == NULL ?
				 errmsg("a refused API key has no access to the data of all tenants") :
				 errmsg("API key \"%s\" has no access to the data of all tenants",
						principal_key_id()),
				 errhint("Use a transaction that has not authenticated as a key.")));
}

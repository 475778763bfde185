/*
 * settings.c
 *		Every setting: its definition, variable and check hook.
 *
 * The settings are defined when the library is loaded: at server start if the
 * library is preloaded, otherwise when a session first calls one of its
 * functions.  SQL of the extension therefore never reads a setting by
 * current_setting(), which would fail in a session that has not loaded the
 * library yet.  SQL calls a C function of the library instead.
 */
#include "postgres.h"

#include <limits.h>

#include "access/parallel.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"

#include "base/principal.h"
#include "base/settings.h"
#include "compat.h"
#include "token/pepper.h"
#include "token/shown.h"
#include "token/token.h"

char	   *settings_default_environment = NULL;
char	   *settings_end_user = NULL;
char	   *settings_primary_conninfo = NULL;
char	   *settings_required_environment = NULL;
char	   *settings_tenant = NULL;
char	   *settings_token_prefix = NULL;
char	   *settings_max_lifetime = NULL;
int			settings_cache_size = 1024;
int			settings_max_tracked_keys = 65536;
bool		settings_notify = false;
bool		settings_redact_logs = true;
bool		settings_require_end_user = false;
bool		settings_track_usage = true;
int			settings_usage_flush_interval = 10000;
int			settings_usage_resolution = 60;

/* Only rk_apikeys._setting_interval() reads these. */
static char *expiring_window = NULL;
static char *stale_after = NULL;

static bool interval_parse(const char *value, Interval *result);
static bool check_interval(char **newval, void **extra, GucSource source);
static bool check_token_name(char **newval, void **extra, GucSource source);
static bool check_required_environment(char **newval, void **extra, GucSource source);
static bool check_end_user(char **newval, void **extra, GucSource source);
static bool check_tenant(char **newval, void **extra, GucSource source);

PG_FUNCTION_INFO_V1(rk_apikeys_setting_interval);
PG_FUNCTION_INFO_V1(rk_apikeys_setting_environment);

/* Define the settings, in alphabetical order, and reserve their prefix. */
void
settings_init(void)
{
	DefineCustomIntVariable("rk_apikeys.cache_size",
							"About how many keys a session keeps in memory; 0 keeps none.",
							NULL,
							&settings_cache_size, 1024, 0, 1000000,
							PGC_USERSET, 0,
							NULL, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.default_environment",
							   "The environment of a key that is created without one.",
							   NULL,
							   &settings_default_environment, "prod",
							   PGC_SUSET, 0,
							   check_token_name, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.end_user",
							   "The person of the product for whom this session acts.",
							   "Events and keys keep the name. A member manages the keys that this person owns.",
							   &settings_end_user, "",
							   PGC_SUSET, 0,
							   check_end_user, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.expiring_window",
							   "How far ahead the view expiring_keys looks.",
							   NULL,
							   &expiring_window, "14 days",
							   PGC_USERSET, 0,
							   check_interval, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.max_lifetime",
							   "The longest time from a key's creation to its expiry; 0 means no limit.",
							   "A key that would live longer, or has no expiry, is refused when it is created and when its expiry is changed.",
							   &settings_max_lifetime, "0",
							   PGC_SUSET, 0,
							   check_interval, NULL, NULL);
	/*
	 * Without preload it has no effect, but the configuration file may still
	 * have it.  PostgreSQL refuses to define a PGC_POSTMASTER setting then.
	 */
	DefineCustomIntVariable("rk_apikeys.max_tracked_keys",
							"The number of keys whose use is kept in shared memory.",
							"It has no effect unless shared_preload_libraries has the library.",
							&settings_max_tracked_keys,
							65536, 16, 16777216,
							process_shared_preload_libraries_in_progress ?
							PGC_POSTMASTER : PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("rk_apikeys.notify",
							 "Send a notification on channel rk_apikeys for each committed change of a key.",
							 "Every role of the database can listen. A transaction that sends one cannot be prepared.",
							 &settings_notify, false,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.pepper_file",
							   "The file with the peppers that sign the digests of tokens.",
							   "Each line is id:base64. The highest id signs new keys; the others still verify.",
							   &pepper_file, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, pepper_assign_file, NULL);
	/* No check hook: where one refuses, PostgreSQL logs the value. */
	DefineCustomStringVariable("rk_apikeys.primary_conninfo",
							   "How to connect to the server that writes usage, from a standby or subscriber.",
							   "If it is empty, a standby keeps usage in its memory, and a subscriber writes its own.",
							   &settings_primary_conninfo, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.principal",
							   "The key that this transaction has authenticated as.",
							   "Only rk_apikeys.authenticate() sets it.",
							   &principal_setting, "",
							   PGC_SUSET,
							   COMPAT_GUC_NO_RESET | GUC_NO_RESET_ALL |
							   GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE |
							   GUC_DISALLOW_IN_FILE,
							   principal_check, NULL, NULL);
	DefineCustomBoolVariable("rk_apikeys.redact_logs",
							 "Mask what looks like a token in the server log and in pg_stat_activity.",
							 "Only sessions that have loaded the library mask tokens, so preload the library.",
							 &settings_redact_logs, true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomBoolVariable("rk_apikeys.require_end_user",
							 "Refuse a change of keys while rk_apikeys.end_user is empty.",
							 NULL,
							 &settings_require_end_user, false,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.required_environment",
							   "The environment of the keys that verify accepts; empty means any.",
							   "Each verify refuses a key of another environment with environment_mismatch.",
							   &settings_required_environment, "",
							   PGC_SUSET, 0,
							   check_required_environment, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.stale_after",
							   "How long a key goes unused before the view stale_keys shows it.",
							   NULL,
							   &stale_after, "90 days",
							   PGC_USERSET, 0,
							   check_interval, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.tenant",
							   "The tenant whose keys this session manages.",
							   "If it is empty, the tenant is the name of the current role.",
							   &settings_tenant, "",
							   PGC_SUSET, 0,
							   check_tenant, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.token_prefix",
							   "The first part of new tokens.",
							   NULL,
							   &settings_token_prefix, "rk",
							   PGC_SUSET, 0,
							   check_token_name, NULL, NULL);
	DefineCustomBoolVariable("rk_apikeys.track_usage",
							 "Record when and how often a key is used.",
							 NULL,
							 &settings_track_usage, true,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("rk_apikeys.usage_flush_interval",
							"How often usage is written from shared memory to the tables.",
							NULL,
							&settings_usage_flush_interval, 10000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("rk_apikeys.usage_resolution",
							"Without shared memory, the minimum time between two records of a key's use.",
							NULL,
							&settings_usage_resolution, 60, 0, INT_MAX / 1000,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("rk_apikeys");
}

/*
 * rk_apikeys._setting_interval(name text) -> interval
 *
 * Return the value of an interval setting; NULL for max_lifetime 0, which means
 * no limit.  Raise 22023 for any other name.
 */
Datum
rk_apikeys_setting_interval(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Interval   *result = palloc0(sizeof(Interval));

	if (strcmp(name, "expiring_window") == 0)
		settings_interval(expiring_window, result);
	else if (strcmp(name, "stale_after") == 0)
		settings_interval(stale_after, result);
	else if (strcmp(name, "max_lifetime") == 0)
	{
		settings_interval(settings_max_lifetime, result);
		if (result->time == 0 && result->day == 0 && result->month == 0)
			PG_RETURN_NULL();
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rk_apikeys has no interval setting \"%s\"",
						shown_text(PG_GETARG_TEXT_PP(0)))));
	PG_RETURN_INTERVAL_P(result);
}

/* rk_apikeys._default_environment() -> text: the setting of that name. */
Datum
rk_apikeys_setting_environment(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(settings_default_environment));
}

/*
 * Parse an interval as the type's input function does, but raise nothing,
 * because a check hook must not raise.  Return false if the value is not an
 * interval or is negative.
 */
static bool
interval_parse(const char *value, Interval *result)
{
	char		work[256];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nf;
	int			dtype;
	struct pg_itm_in itm;

	memset(&itm, 0, sizeof(itm));
	if (ParseDateTime(value, work, sizeof(work), field, ftype,
					  MAXDATEFIELDS, &nf) != 0)
		return false;
	if (DecodeInterval(field, ftype, nf, INTERVAL_FULL_RANGE, &dtype, &itm) != 0)
		return false;
	if (dtype != DTK_DELTA || itmin2interval(&itm, result) != 0)
		return false;
	return result->time >= 0 && result->day >= 0 && result->month >= 0;
}

/*
 * Parse the value of an interval setting.  The check hook has accepted the
 * value before.
 */
void
settings_interval(const char *value, Interval *result)
{
	if (!interval_parse(value, result))
		elog(ERROR, "invalid interval in a setting: \"%s\"", value);
}

static bool
check_interval(char **newval, void **extra, GucSource source)
{
	Interval	parsed;

	if (interval_parse(*newval, &parsed))
		return true;
	GUC_check_errhint("Give an interval that is not negative, such as '14 days'.");
	return false;
}

static bool
check_token_name(char **newval, void **extra, GucSource source)
{
	if (token_name_ok(*newval, strlen(*newval)))
		return true;
	GUC_check_errhint("Use a lower-case letter, then up to 15 lower-case letters and digits.");
	return false;
}

static bool
check_required_environment(char **newval, void **extra, GucSource source)
{
	return (*newval)[0] == '\0' || check_token_name(newval, extra, source);
}

/*
 * Return whether an end user's name is valid in the database's encoding, and not
 * too long.
 */
bool
settings_end_user_ok(const char *value)
{
	int			chars = pg_verify_mbstr_len(GetDatabaseEncoding(), value,
											strlen(value), true);

	return chars >= 0 && chars <= SETTINGS_END_USER_MAX_CHARS;
}

/*
 * Outside of a database the encoding is not known, so caller_end_user() checks
 * the name again.  A parallel worker takes the name of its leader.  The message
 * does not show the name, which may be a token.
 */
static bool
check_end_user(char **newval, void **extra, GucSource source)
{
	if (OidIsValid(MyDatabaseId) && !InitializingParallelWorker &&
		!settings_end_user_ok(*newval))
	{
		GUC_check_errmsg("invalid value for parameter \"rk_apikeys.end_user\"");
		GUC_check_errhint("Use at most %d characters of the database's encoding.",
						  SETTINGS_END_USER_MAX_CHARS);
		return false;
	}
	token_redact_kept(*newval, strlen(*newval));
	return true;
}

static bool
check_tenant(char **newval, void **extra, GucSource source)
{
	/* An upper bound in bytes; the table's CHECK counts characters. */
	if (strlen(*newval) <= SETTINGS_TENANT_MAX_CHARS * MAX_MULTIBYTE_CHAR_LEN)
		return true;
	GUC_check_errdetail("A tenant's name has at most %d characters.",
						SETTINGS_TENANT_MAX_CHARS);
	return false;
}

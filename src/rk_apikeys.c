/*
 * rk_apikeys.c
 *		Start of the library, and its settings.
 *
 * Nothing here touches a table.  Each setting is defined when the library is
 * loaded: at server start if it is preloaded, otherwise when a session first
 * calls one of its functions.  SQL therefore never reads a setting by
 * current_setting(), which would fail in a session that has not loaded the
 * library yet, but through a C function of ours.
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"

#include "cache.h"
#include "compat.h"
#include "issued.h"
#include "pepper.h"
#include "principal.h"
#include "redact.h"
#include "rk_apikeys.h"
#include "settings.h"
#include "stats.h"
#include "token.h"
#include "usage.h"
#include "worker.h"

PG_MODULE_MAGIC_EXT(
	.name = "rk_apikeys",
	.version = RK_APIKEYS_VERSION
);

/* A tenant's name, in characters: the table's CHECK has the same bound. */
#define TENANT_MAX_CHARS 200

char	   *rk_apikeys_default_environment = NULL;
char	   *rk_apikeys_primary_conninfo = NULL;
char	   *rk_apikeys_tenant = NULL;
char	   *rk_apikeys_token_prefix = NULL;
char	   *rk_apikeys_expiring_window = NULL;
char	   *rk_apikeys_max_lifetime = NULL;
char	   *rk_apikeys_stale_after = NULL;
int			rk_apikeys_cache_size = 1024;
int			rk_apikeys_max_tracked_keys = 65536;
bool		rk_apikeys_notify = false;
bool		rk_apikeys_redact_logs = true;
bool		rk_apikeys_track_usage = true;
int			rk_apikeys_usage_flush_interval = 10000;
int			rk_apikeys_usage_resolution = 60;

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

void		_PG_init(void);

PG_FUNCTION_INFO_V1(rk_apikeys_setting_interval);
PG_FUNCTION_INFO_V1(rk_apikeys_setting_environment);

/*
 * Parse an interval as the type's input function does, without raising: a
 * check hook must not.  Returns false if it is none, or negative.
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

/* The interval that a setting of ours holds; its check hook let it through. */
void
rk_apikeys_parse_interval(const char *value, Interval *result)
{
	if (!interval_parse(value, result))
		elog(ERROR, "setting holds no interval: \"%s\"", value);
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
	GUC_check_errhint("It is a lower-case letter, then up to 15 lower-case letters and digits.");
	return false;
}

static bool
check_tenant(char **newval, void **extra, GucSource source)
{
	/* Counted in bytes of UTF-8 at most; the table's CHECK is exact. */
	if (strlen(*newval) <= TENANT_MAX_CHARS * MAX_MULTIBYTE_CHAR_LEN)
		return true;
	GUC_check_errdetail("A tenant's name has at most %d characters.",
						TENANT_MAX_CHARS);
	return false;
}

/*
 * rk_apikeys._setting_interval(name text) → interval
 *
 * The value of a setting that is an interval; NULL for max_lifetime 0, which
 * means no limit.  Raises 22023 for any other name.
 */
Datum
rk_apikeys_setting_interval(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Interval   *result = palloc0(sizeof(Interval));

	if (strcmp(name, "expiring_window") == 0)
		rk_apikeys_parse_interval(rk_apikeys_expiring_window, result);
	else if (strcmp(name, "stale_after") == 0)
		rk_apikeys_parse_interval(rk_apikeys_stale_after, result);
	else if (strcmp(name, "max_lifetime") == 0)
	{
		rk_apikeys_parse_interval(rk_apikeys_max_lifetime, result);
		if (result->time == 0 && result->day == 0 && result->month == 0)
			PG_RETURN_NULL();
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no setting of rk_apikeys that is an interval is named \"%s\"",
						settings_shown(PG_GETARG_TEXT_PP(0)))));
	PG_RETURN_INTERVAL_P(result);
}

/* rk_apikeys._default_environment() → text: the setting of that name. */
Datum
rk_apikeys_setting_environment(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(rk_apikeys_default_environment));
}

/* Define the settings, in alphabetical order. */
static void
define_settings(void)
{
	DefineCustomIntVariable("rk_apikeys.cache_size",
							"The keys that a session keeps in memory; 0 for none.",
							NULL,
							&rk_apikeys_cache_size, 1024, 0, 1000000,
							PGC_USERSET, 0,
							NULL, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.default_environment",
							   "The environment of a key that is created without one.",
							   NULL,
							   &rk_apikeys_default_environment, "prod",
							   PGC_SUSET, 0,
							   check_token_name, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.expiring_window",
							   "How far ahead the view expiring_keys looks.",
							   NULL,
							   &rk_apikeys_expiring_window, "14 days",
							   PGC_USERSET, 0,
							   check_interval, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.max_lifetime",
							   "The longest time from a key's creation to its expiry; 0 for no limit.",
							   "Longer and endless keys are refused when they are made, and when their expiry is changed.",
							   &rk_apikeys_max_lifetime, "0",
							   PGC_SUSET, 0,
							   check_interval, NULL, NULL);
	/* It sizes shared memory, so it means nothing later. */
	if (process_shared_preload_libraries_in_progress)
		DefineCustomIntVariable("rk_apikeys.max_tracked_keys",
								"The keys whose use is kept in shared memory.",
								NULL,
								&rk_apikeys_max_tracked_keys,
								65536, 16, 16777216,
								PGC_POSTMASTER, 0,
								NULL, NULL, NULL);
	DefineCustomBoolVariable("rk_apikeys.notify",
							 "Send a notification on channel rk_apikeys for each committed change of a key.",
							 "Every role of the database can listen. A transaction that sends one cannot be prepared.",
							 &rk_apikeys_notify, false,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	pepper_init();
	/* No check hook: where one refuses, PostgreSQL logs the value. */
	DefineCustomStringVariable("rk_apikeys.primary_conninfo",
							   "How to connect to the server that writes usage, from a standby or subscriber.",
							   "If it is empty, a standby keeps usage in its memory, and a subscriber writes its own.",
							   &rk_apikeys_primary_conninfo, "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	principal_init();
	DefineCustomBoolVariable("rk_apikeys.redact_logs",
							 "Mask what looks like a token in the server log and in pg_stat_activity.",
							 "It works in sessions that have loaded the library: preload it.",
							 &rk_apikeys_redact_logs, true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.stale_after",
							   "How long a key goes unused before the view stale_keys shows it.",
							   NULL,
							   &rk_apikeys_stale_after, "90 days",
							   PGC_USERSET, 0,
							   check_interval, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.tenant",
							   "The tenant whose keys this session manages.",
							   "If it is empty, the tenant is the name of the current role.",
							   &rk_apikeys_tenant, "",
							   PGC_SUSET, 0,
							   check_tenant, NULL, NULL);
	DefineCustomStringVariable("rk_apikeys.token_prefix",
							   "The first part of new tokens.",
							   NULL,
							   &rk_apikeys_token_prefix, "rk",
							   PGC_SUSET, 0,
							   check_token_name, NULL, NULL);
	DefineCustomBoolVariable("rk_apikeys.track_usage",
							 "Record when and how often a key is used.",
							 NULL,
							 &rk_apikeys_track_usage, true,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("rk_apikeys.usage_flush_interval",
							"How often usage is written from shared memory to the tables.",
							NULL,
							&rk_apikeys_usage_flush_interval, 10000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("rk_apikeys.usage_resolution",
							"Without shared memory, the least time between two records of a key's use.",
							NULL,
							&rk_apikeys_usage_resolution, 60, 0, INT_MAX / 1000,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("rk_apikeys");
}

/* Reserve shared memory and locks. */
static void
request_shmem(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	usage_shmem_request();
	stats_shmem_request();
}

static void
startup_shmem(void)
{
	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	usage_shmem_startup();
	stats_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}

void
_PG_init(void)
{
	define_settings();
	issued_init();
	cache_init();
	redact_init();
	if (process_shared_preload_libraries_in_progress)
	{
		previous_shmem_request_hook = shmem_request_hook;
		shmem_request_hook = request_shmem;
		previous_shmem_startup_hook = shmem_startup_hook;
		shmem_startup_hook = startup_shmem;
		worker_init();
	}
}

/*
 * limits_guard.c
 *		The triggers of limits.
 *
 * limits_settle (AFTER INSERT, UPDATE or DELETE, FOR EACH ROW) and
 * limits_settle_truncate invalidate what every session has kept of limits.  They
 * are ENABLE ALWAYS, so they also fire where replication applies a change, for
 * which only row triggers fire.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"

#include "key/cache.h"
#include "key/guard.h"

PG_FUNCTION_INFO_V1(rk_apikeys_limits_settle);

/* limits_settle and limits_settle_truncate. */
Datum
rk_apikeys_limits_settle(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		truncate = CALLED_AS_TRIGGER(fcinfo) &&
		TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event);

	trigger = guard_trigger_of(fcinfo, "limits", truncate ?
							   "limits_settle_truncate" : "limits_settle");
	cache_tell_change(trigger->tg_relation);
	return PointerGetDatum(NULL);
}

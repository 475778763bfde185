/*
 * guard.h
 *		The row triggers of api_keys.
 */
#ifndef GUARD_H
#define GUARD_H

#include "commands/trigger.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "token/token.h"

/* What rotate_key() tells the trigger of its INSERT. */
typedef struct GuardRotation
{
	const char *key_id;			/* of the old key; NULL: no rotation */
	bool		has_expires_at; /* the successor has its own */
	char		successor[TOKEN_KEY_ID_LEN + 1];	/* result: its key id */
	TimestampTz old_end;		/* result: when the old key expires */
} GuardRotation;

extern GuardRotation guard_rotation;

extern TriggerData *guard_trigger(FunctionCallInfo fcinfo, const char *name);
extern TriggerData *guard_trigger_of(FunctionCallInfo fcinfo, const char *table,
									 const char *name);
extern bool guard_differs(TriggerData *trigger, int column);

#endif

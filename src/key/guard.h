/*
 * guard.h
 *		The row triggers of api_keys.
 */
#ifndef GUARD_H
#define GUARD_H

#include "commands/trigger.h"
#include "fmgr.h"

extern TriggerData *guard_trigger(FunctionCallInfo fcinfo, const char *name);

#endif

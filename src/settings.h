/*
 * settings.h
 *		What a key's settings may be.
 */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "postgres.h"

extern void settings_check(Datum *values, bool *nulls, const bool *changed,
						   TimestampTz created_at);
extern char *settings_shown(text *value);

#endif

/*
 * usage.h
 *		The record of a key's use.
 */
#ifndef USAGE_H
#define USAGE_H

#include "store.h"
#include "utils/inet.h"

extern void usage_record(const StoredKey *key, inet *client_addr);

#endif
